"""MoCo and RSPNet as a whole: steps against the papers in loops, key network, queue, resume."""

import copy
import math
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_vssl.augment.views import VideoViews
from lightning_vssl.backbones.weights import export, load_head
from lightning_vssl.data.clips import RandomClip, SpeedClips
from lightning_vssl.data.windows import ScaleCrop
from lightning_vssl.datamodules.video_folder import VideoFolder
from lightning_vssl.methods.moco import MoCo
from lightning_vssl.methods.rspnet import RSPNet
from tests.methods.clips import ClipNet
from tests.methods.frames import FrameNet
from tests.methods.momentum import SGD, augmented, awake, encoder, raw, small
from tests.videos import write_numbered

BASES = ["MoCo of frames", "MoCo of clips", "RSPNet"]


def codes(parts: nn.Module | dict[str, nn.Module], views: Tensor, head: str) -> list[list[float]]:
    """Unit vectors of one clip at a time, as Python's numbers; norms in eval."""
    rows = []
    for clip in views:
        clip = clip[:, 0] if parts["backbone"].dims == 2 else clip
        vector = parts[head](parts["backbone"](clip[None]).flatten(2).mean(2))[0].tolist()
        length = math.sqrt(sum(x * x for x in vector))
        rows.append([x / length for x in vector])
    return rows


def product(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def slow_moco(query, key, queued, temperature) -> float:
    """MoCo, Eq. 1; what is queued was brought to unit length in float32."""
    queued = [[x / math.sqrt(product(n, n)) for x in n] for n in queued]
    total = 0.0
    for q, k in zip(query, key, strict=True):
        positive = math.exp(product(q, k) / temperature)
        rest = sum(math.exp(product(q, n) / temperature) for n in queued)
        total -= math.log(positive / (positive + rest))
    return total / len(query)


@pytest.mark.parametrize("options", [{}, {"hidden": (12,), "temperature": 0.2}], ids=str)
@pytest.mark.parametrize("name", BASES[:2])
@torch.no_grad()
def test_mocos_step_equals_the_paper_in_loops(name: str, options: dict[str, object]) -> None:
    method = small(name, **options).double().eval()
    awake(method)
    made = augmented(method)
    query = codes(encoder(method), made["views"][:, 0], "projector")
    key = codes(method.target, made["views"][:, 1], "projector")
    expected = slow_moco(query, key, method.queue.keys.tolist(), options.get("temperature", 0.07))
    found = method._step(made)
    assert found["loss"].item() == pytest.approx(expected, rel=1e-12)
    assert torch.allclose(found["keys"], torch.tensor(key).double(), atol=1e-12)
    assert found["embedding"].shape == (4, method.backbone.num_features)
    assert found["views"] is made["views"]


@pytest.mark.parametrize(
    "options",
    [{}, {"margin": 0.14, "speed_temperature": 0.07, "speed_weight": 0.5, "temperature": 0.1}],
    ids=str,
)
@torch.no_grad()
def test_rspnets_step_equals_the_paper_in_loops(options: dict[str, object]) -> None:
    method = small("RSPNet", **options).double().eval()
    awake(method)
    made = augmented(method)
    views, online, target = made["views"], encoder(method), method.target
    queued, tau = method.queue.keys.tolist(), options.get("temperature", 0.07)
    query = codes(online, views[:, 0], "projector")
    other_keys = codes(target, views[:, 2], "projector")
    instance = sum(
        slow_moco(query, keys, queued, tau)
        for keys in (codes(target, views[:, 1], "projector"), other_keys)
    )
    rows = zip(
        codes(online, views[:, 0], "speed_head"),
        codes(target, views[:, 1], "speed_head"),
        codes(target, views[:, 2], "speed_head"),
        strict=True,
    )
    margin = options.get("margin", 0.15)
    ranks = [max(0.0, margin - product(q, s) + product(q, o)) for q, s, o in rows]
    speed = sum(ranks) / len(ranks) / options.get("speed_temperature", 1.0)
    found = method._step(made)
    assert found["instance"].item() == pytest.approx(instance, rel=1e-12)
    assert found["speed"].item() == pytest.approx(speed, rel=1e-12)
    expected = instance + options.get("speed_weight", 1.0) * speed
    assert found["loss"].item() == pytest.approx(expected, rel=1e-12)
    assert torch.allclose(found["keys"], torch.tensor(other_keys).double(), atol=1e-12)


@pytest.mark.parametrize("name", BASES)
def test_key_network_gets_no_gradient_and_all_else_does(name: str) -> None:
    method = small(name)
    awake(method)
    method._step(augmented(method, dtype=torch.float32))["loss"].backward()
    without = {n for n, p in method.named_parameters() if p.grad is None or not p.grad.any()}
    assert without == {n for n, _ in method.named_parameters() if n.startswith("target.")}
    assert not any(p.requires_grad for p in method.target.parameters())
    assert set(method.target) == {"backbone", *method.heads}


def test_key_network_makes_its_own_statistics_from_the_keys() -> None:
    method = small("RSPNet")
    awake(method)
    method._step(augmented(method, dtype=torch.float32))
    ours = method.target["backbone"].blocks["layer2"][1]
    theirs = method.backbone.blocks["layer2"][1]
    assert (ours.num_batches_tracked.item(), theirs.num_batches_tracked.item()) == (2, 1)
    assert not torch.equal(ours.running_mean, theirs.running_mean)


def test_heads_run_in_float32_under_autocast() -> None:
    method = small("RSPNet")
    seen = []
    for head in (method.projector, method.speed_head, method.target["projector"]):
        head.register_forward_hook(lambda _, x, y: seen.append((x[0].dtype, y.dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        outputs = method._step(augmented(method, dtype=torch.float32))
        maps = method.encode(raw_views(method)).maps
    assert maps.dtype == torch.bfloat16
    assert set(seen) == {(torch.float32, torch.float32)}
    assert outputs["loss"].dtype == outputs["keys"].dtype == torch.float32


def raw_views(method: nn.Module) -> Tensor:
    return augmented(method, dtype=torch.float32)["views"][:, 0]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for i in range(11):
        write_numbered(folder / f"{i:02d}.mp4", 20, seed=i)
    return folder


class Watched:
    """Notes the key network before and after each step, the online one, what is queued, losses."""

    def optimizer_step(self, *args: object) -> None:
        before = copy.deepcopy(self.target.state_dict())
        super().optimizer_step(*args)
        online = {n: p.detach().clone() for n, p in self.named_parameters()}
        after = copy.deepcopy(self.target.state_dict())
        self.noted = [*getattr(self, "noted", []), (before, online, after)]

    def _step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        outputs = super()._step(batch)
        self.queued = [*getattr(self, "queued", []), outputs["keys"].clone()]
        losses = {name: outputs[name].item() for name in ("loss", *self.terms)}
        self.losses = [*getattr(self, "losses", []), losses]
        return outputs


class WatchedMoCo(Watched, MoCo):
    pass


class WatchedRSPNet(Watched, RSPNet):
    pass


def watched(name: str) -> nn.Module:
    """11 videos in batches of 2: five steps an epoch, the queue is full after four."""
    torch.manual_seed(0)
    kind = WatchedRSPNet if name == "RSPNet" else WatchedMoCo
    backbone = FrameNet() if name.endswith("frames") else ClipNet()
    options = {"projection": 8, "queue_size": 8, "momentum": 0.9, "lr_batch": None}
    return kind(backbone, VideoViews(blur_kernel=5), SGD, **options)


def fit(
    method: nn.Module,
    root: Path,
    folder: Path,
    *,
    start: Path | None = None,
    accumulate: int = 1,
    steps: int = 7,
    **data_options: object,
) -> Trainer:
    """Trains, with a checkpoint after every step."""
    frames = 1 if method.backbone.dims == 2 else 4
    clips = SpeedClips(4) if isinstance(method, RSPNet) else RandomClip(frames, clips=2)
    settings = {"clips": clips, "window": ScaleCrop(16, (16, 20)), **data_options}
    data = VideoFolder(root, batch_size=2, seed=7, **settings)
    keep = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=steps,
            limit_val_batches=0,
            accumulate_grad_batches=accumulate,
            callbacks=[keep],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(method, data, ckpt_path=start)
    return trainer


@pytest.mark.parametrize(
    ("name", "at"), [("MoCo of frames", 3), ("RSPNet", 3), ("RSPNet", 5)], ids=str
)
def test_a_resumed_run_has_the_queue_of_the_uninterrupted_one(
    root: Path, tmp_path: Path, name: str, at: int
) -> None:
    """Stopped in the middle of an epoch and at its end; queue, pointer, both networks: to the bit.

    Another seed of the global generators after the resume changes nothing.
    """
    whole, rest = watched(name), watched(name)
    fit(whole, root, tmp_path / "whole")
    torch.manual_seed(999)
    start = tmp_path / "whole" / f"step={at}.ckpt"
    fit(rest, root, tmp_path / "rest", start=start)
    expected, found = whole.state_dict(), rest.state_dict()
    assert rest.losses == whole.losses[at:]
    assert expected["queue.pointer"].item() == 7 * 2 % 8
    assert {"queue.keys", "queue.pointer"} <= set(expected)
    for key, value in expected.items():
        assert torch.equal(found[key], value), key
    first = torch.load(start, weights_only=True)["state_dict"]["queue.keys"]
    assert not torch.equal(first, expected["queue.keys"])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_key_network_moves_once_a_step_and_every_batch_is_queued(
    root: Path, tmp_path: Path, accumulate: int
) -> None:
    method = watched("RSPNet")
    trainer = fit(method, root, tmp_path, accumulate=accumulate, steps=3)
    assert len(method.noted) == trainer.global_step == 3
    for before, online, after in method.noted:
        moved = set()
        for name, value in before.items():
            if name not in online:
                continue  # statistics of batch norms: its own
            expected = 0.9 * value + 0.1 * online[name]
            assert torch.allclose(after[name], expected, rtol=1e-5, atol=1e-8), name
            if not torch.equal(after[name], value):
                moved.add(name.split(".")[0])
        assert moved == {"backbone", "projector", "speed_head"}
    batches = 3 * accumulate - (accumulate == 2)  # five batches an epoch: the third step has one
    assert len(method.queued) == batches
    written = torch.cat(method.queued)
    assert method.queue.pointer.item() == 2 * batches % 8
    held = torch.roll(method.queue.keys, -int(method.queue.pointer), 0)  # oldest first
    count = min(8, len(written))
    assert torch.equal(held[-count:], written[-count:])
    assert torch.allclose(written.norm(dim=1), torch.ones(len(written)))


def test_learning_rate_parameters_and_exported_heads(root: Path, tmp_path: Path) -> None:
    method = watched("RSPNet")
    trainer = fit(method, root, tmp_path, steps=2)
    trained = [p for group in trainer.optimizers[0].param_groups for p in group["params"]]
    assert sum(p.numel() for p in trained) == sum(
        p.numel() for n, p in method.named_parameters() if not n.startswith("target.")
    )
    report = export(tmp_path / "step=2.ckpt", tmp_path / "export")
    assert report.heads == ("projector", "speed_head")
    for name in report.heads:
        head = load_head(tmp_path / "export", name)
        pooled = torch.randn(2, method.backbone.num_features)
        assert torch.equal(head(pooled), getattr(method, name)(pooled))


@pytest.mark.parametrize("name", BASES)
def test_validation_is_mocos_loss_of_two_views_and_leaves_the_queue(name: str) -> None:
    """Clips of a test have more frames and no other speed; frames are taken from their middle."""
    method = small(name).eval()
    awake(method)
    logged = {}
    method.log = lambda key, value, **options: logged.update({key: value})
    batch = raw(method)
    if name.endswith("frames"):
        batch["video"] = batch["video"].repeat(1, 1, 3, 1, 1, 1)
        batch["time"] = torch.zeros(4, 2, 3)
    two = {**batch, **{k: batch[k][:, :2] for k in ("video", "time", "mask", "tracked")}}
    before = copy.deepcopy(method.queue.state_dict())
    outputs = method.validation_step(two, 0)
    views = outputs["views"].double()
    method.double()
    query = codes(encoder(method), views[:, 0], "projector")
    key = codes(method.target, views[:, 1], "projector")
    expected = slow_moco(query, key, before["keys"].tolist(), 0.07)
    assert logged["val/loss"].item() == pytest.approx(expected, rel=1e-4)
    for key, value in before.items():
        assert torch.equal(method.queue.state_dict()[key].to(value), value)


@pytest.mark.parametrize("name", BASES)
def test_training_lowers_the_loss(name: str) -> None:
    method = small(name, queue_size=8)
    made = augmented(method, dtype=torch.float32)
    optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=1e-2)
    history = []
    for _ in range(30):
        found = method._step(made)
        optimizer.zero_grad()
        found["loss"].backward()
        optimizer.step()
        history.append(found["loss"].item())
    assert history[-1] < 0.5 * history[0]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("MoCo of clips", {"momentum": 1.5}, "momentum must lie"),
        ("MoCo of clips", {"temperature": 0.0}, "temperature must be above 0"),
        ("MoCo of clips", {"queue_size": 0}, "size must be at least 1"),
        ("RSPNet", {"margin": 2.14}, "a difference of cosines"),
        ("RSPNet", {"speed_temperature": 0.0}, "speed_temperature above"),
        ("RSPNet", {"speed_weight": -1.0}, "0 or more, got -1.0 for speed"),
    ],
)
def test_options_that_do_not_fit(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(name, **options)


def test_data_that_does_not_fit() -> None:
    frames = small("MoCo of frames")
    with pytest.raises(ValueError, match="takes 2 views of a sample, got 3"):
        frames._step({"views": torch.zeros(4, 3, 3, 1, 32, 32)})
    with pytest.raises(ValueError, match="clips of one frame, got 4 frames"):
        frames._step({"views": torch.zeros(4, 2, 3, 4, 32, 32)})
    with pytest.raises(ValueError, match="RSPNet needs a 3-D backbone, got FrameNet"):
        RSPNet(FrameNet(), VideoViews(), SGD)
    method = small("RSPNet")
    batch = augmented(method, dtype=torch.float32)
    batch["time"] = batch["time"][:, :1].expand(-1, 3, -1)
    with pytest.raises(ValueError, match="give the data SpeedClips"):
        method.training_step(batch, 0)
    batch["time"] = batch["time"][:, :, :1]
    with pytest.raises(ValueError, match=r"clips of one frame have none: .* frames of 2 or more"):
        method.training_step(batch, 0)


def test_a_batch_that_does_not_divide_the_queue_says_what_would() -> None:
    method = small("MoCo of frames", queue_size=10)
    with pytest.raises(ValueError, match="sizes that fit: 8 or 12"):
        method.training_step(augmented(method, dtype=torch.float32), 0)


def test_the_papers_sizes() -> None:
    """Defaults are MoCo v1's and RSPNet's: one linear layer to 128, 65,536 and 16,384 keys."""
    with torch.device("meta"):
        image, video = (
            kind(net, nn.Identity(), SGD)
            for kind, net in ((MoCo, FrameNet(512)), (RSPNet, ClipNet()))
        )
    assert sum(p.numel() for p in image.projector.parameters()) == 2048 * 128 + 128
    assert image.queue.keys.shape == (65536, 128)
    assert video.queue.keys.shape == (16384, 128)
    assert (image.temperature, image.momentum, video.margin) == (0.07, 0.999, 0.15)
