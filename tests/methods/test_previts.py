"""PreViTS as a whole: the attention loss against section 3.3 by plain autograd and loops."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_vssl.augment.objects import ObjectViews
from lightning_vssl.augment.views import VideoViews
from lightning_vssl.data.clips import TrackedPair, TrackedSpeeds
from lightning_vssl.data.tubes import Tube, tube_table, write_tubes
from lightning_vssl.data.windows import WholeFrame
from lightning_vssl.methods.previts import PreViTSMoCo, PreViTSRSPNet
from tests.methods.clips import ClipNet
from tests.methods.frames import FrameNet
from tests.methods.momentum import SGD, augmented, awake, small
from tests.methods.test_moco import Watched, codes, fit
from tests.videos import write_numbered

PAIRS = [("PreViTS of frames", "MoCo of frames"), ("PreViTS of clips", "RSPNet")]
KINDS = [name for name, _ in PAIRS]


def ready(name: str, **options: object) -> nn.Module:
    """In float64 and eval, norms with the statistics of a batch: maps are not next to nothing."""
    method = small(name, **options).double()
    awake(method)
    norms = [m for m in method.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    method._step(augmented(method))
    return method.eval()


def plain(x: Tensor, method: nn.Module) -> Tensor:
    return x[:, 0] if method.backbone.dims == 2 else x


def by_autograd(method: nn.Module, made: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Eq. 3 to 5, one sample at a time, norms in eval: (loss, Grad-CAM of each sample).

    The gradient is taken by the map itself and pooled; masks are enlarged and targets averaged by
    hand, all sizes being multiples of each other.
    """
    side = made["views"].shape[-1]
    losses, cams = [], []
    for sample in range(len(made["views"])):
        query, key = made["views"][sample, :2]  # (3, T, H, W)
        own, theirs = (mask > 0 for mask in made["mask"][sample, :2])  # (T, h, w)
        grow = side // theirs.shape[-1]
        there = theirs.repeat_interleave(grow, 1).repeat_interleave(grow, 2)  # (T, H, W)
        with torch.no_grad():
            (code,) = codes(method.target, (key * there)[None], "projector")
        maps = method.backbone(plain(query, method)[None])
        vector = method.projector(maps.flatten(2).mean(2))[0]
        score = vector @ vector.new_tensor(code) / vector.norm() / method.temperature
        (gradient,) = torch.autograd.grad(score, maps, create_graph=True)
        alpha = gradient[0].flatten(1).sum(1)  # Eq. 3
        cam = sum(a * m for a, m in zip(alpha, maps[0], strict=True)).relu()  # Eq. 4
        cams.append(cam.detach())
        if not (made["tracked"][sample, :2].all() and own.any() and theirs.any()):
            continue
        cells = cam.shape if cam.dim() == 3 else (1, *cam.shape)
        blocks = [range(n) for n in cells]
        times, rows, columns = (a // b for a, b in zip(own.shape, cells, strict=True))
        target = torch.stack(
            [
                own[
                    t * times : (t + 1) * times,
                    y * rows : (y + 1) * rows,
                    x * columns : (x + 1) * columns,
                ]
                .double()
                .mean()
                for t in blocks[0]
                for y in blocks[1]
                for x in blocks[2]
            ]
        )
        length = cam.norm() if cam.any() else 1.0  # nothing speaks for the key: a cosine of 0
        losses.append(1 - cam.flatten() @ target / length / target.norm())  # Eq. 5
    return torch.stack(losses).mean(), cams


@pytest.mark.parametrize("hidden", [(), (12,)], ids=["linear", "mlp"])
@pytest.mark.parametrize(("name", "base"), PAIRS)
def test_step_is_the_bases_and_the_attention_by_plain_autograd(
    name: str, base: str, hidden: tuple[int, ...]
) -> None:
    """Losses and gradients, in float64."""
    method, plainer = ready(name, hidden=hidden), small(base, hidden=hidden).double().eval()
    plainer.load_state_dict(method.state_dict())
    made = augmented(method)
    found, without = method._step(made), plainer._step(made)
    attention, cams = by_autograd(method, made)
    assert 0.02 < attention.item() < 0.98
    assert found["attention"].item() == pytest.approx(attention.item(), rel=1e-10)
    expected = without["loss"].item() + 3 * attention.item()
    assert found["loss"].item() == pytest.approx(expected, rel=1e-12)
    assert torch.equal(found["keys"], without["keys"])
    for cam, one in zip(found["cam"], cams, strict=True):
        assert F.cosine_similarity(cam.flatten(), one.flatten(), dim=0) > 1 - 1e-10
    found["loss"].backward()
    without["loss"].backward()
    ours = {n: p.grad for n, p in method.named_parameters() if p.requires_grad}
    before = {n: p.grad for n, p in plainer.named_parameters() if p.requires_grad}
    method.zero_grad()
    (3 * attention).backward()
    for key, parameter in method.named_parameters():
        if key in ours:
            slow = before[key] if parameter.grad is None else before[key] + parameter.grad
            assert torch.allclose(ours[key], slow, rtol=0, atol=1e-9), key
    assert max((ours[key] - before[key]).abs().max() for key in ours) > 1e-3


@pytest.mark.parametrize("cam", ["relu", "minmax"])
@pytest.mark.parametrize("name", KINDS)
def test_fast_and_double_are_the_same(name: str, cam: str) -> None:
    gradients = []
    for form in ("fast", "double"):
        method = small(name, attention=form, cam=cam, hidden=(12,)).double()
        awake(method)
        method._step(augmented(method))["loss"].backward()
        gradients.append({n: p.grad for n, p in method.named_parameters() if p.requires_grad})
    fast, double = gradients
    apart = max((fast[key] - double[key]).abs().max().item() for key in fast)
    assert apart < 1e-12
    assert max(value.abs().max() for value in fast.values()) > 1e-2


@pytest.mark.parametrize("name", KINDS)
def test_options_change_what_they_say(name: str) -> None:
    """Another map, another target, a second pass: none of the base's losses, each the attention."""
    seen = {}
    for label, options in {
        "paper": {},
        "minmax": {"cam": "minmax"},
        "target": {"target": "official"},
        "official": {"official": True},
    }.items():
        method = small(name, **options).double()
        awake(method)
        seen[label] = (method._step(augmented(method)), method)
    paper = seen["paper"][0]
    for label in ("minmax", "target"):
        assert seen[label][0]["instance"].item() == paper["instance"].item()
        assert abs(seen[label][0]["attention"] - paper["attention"]) > 1e-3
    minmax = seen["minmax"][0]["cam"].flatten(1)
    assert torch.allclose(minmax.amax(1), torch.ones(4).double(), atol=1e-4)
    assert (minmax.amin(1) == 0).all()
    assert (paper["cam"] >= 0).all()
    last = "layer4" if name == KINDS[0] else "layer2"
    passes = {
        label: (
            method.backbone.blocks[last][1].num_batches_tracked.item(),
            method.target["backbone"].blocks[last][1].num_batches_tracked.item(),
            method.moves,
        )
        for label, (_, method) in seen.items()
    }
    keys = method.views - 1
    assert passes["paper"] == (1, keys, 1)
    assert passes["official"] == (2, keys + 1, 2)


def test_masked_keys_leave_the_key_networks_statistics_alone() -> None:
    ours, base = small("PreViTS of clips"), small("RSPNet")
    for method in (ours, base):
        method._step(augmented(method, dtype=torch.float32))
    expected = base.target.state_dict()
    for key, value in ours.target.state_dict().items():
        assert torch.equal(value, expected[key]), key


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("lost", ["untracked", "no object in the query", "nor in the key"])
def test_a_sample_without_object_leaves_the_attention_loss_alone(name: str, lost: str) -> None:
    method = ready(name)
    made = augmented(method)
    made = {**made, "mask": made["mask"].clone(), "tracked": made["tracked"].clone()}
    full = method._step(made)
    if lost == "untracked":
        made["tracked"][0, 1] = False
    else:
        made["mask"][0, 0 if "query" in lost else 1] = 0
    found = method._step(made)
    rest, _ = by_autograd(method, made)
    assert found["attention"].item() == pytest.approx(rest.item(), rel=1e-10)
    assert abs(found["attention"] - full["attention"]) > 1e-4
    assert found["instance"].item() == full["instance"].item()


@pytest.mark.parametrize("name", KINDS)
def test_a_batch_without_any_tube_is_the_bases(name: str) -> None:
    method = small(name)
    awake(method)
    made = augmented(method, dtype=torch.float32)
    made["tracked"] = torch.zeros_like(made["tracked"])
    found = method._step(made)
    assert found["attention"].item() == 0
    found["loss"].backward()
    gradients = [p.grad for p in method.parameters() if p.requires_grad]
    assert all(torch.isfinite(g).all() for g in gradients)
    assert torch.equal(found["loss"], sum(found[t] for t in method.terms if t != "attention"))


def test_void_is_no_object() -> None:
    method = ready("PreViTS of clips")
    made = augmented(method)
    expected = method._step(made)["attention"]
    void = torch.where(made["mask"] == 0, 255, made["mask"].long()).to(torch.uint8)
    assert method._step({**made, "mask": void})["attention"] == expected


def test_one_mask_for_all_frames() -> None:
    method = ready("PreViTS of clips")
    made = augmented(method)
    middle = made["mask"][:, :, 1:2]
    repeated = method._step({**made, "mask": middle.expand(-1, -1, 4, -1, -1)})
    single = method._step({**made, "mask": middle})
    assert single["attention"].item() == pytest.approx(repeated["attention"].item(), rel=1e-12)


class WatchedPreViTSMoCo(Watched, PreViTSMoCo):
    pass


class WatchedPreViTSRSPNet(Watched, PreViTSRSPNet):
    pass


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """11 videos and, beside them, tubes: a square that wanders; the fourth video has none."""
    folder = tmp_path_factory.mktemp("tracked")
    tubes = []
    for i in range(11):
        write_numbered(folder / "videos" / f"{i:02d}.mp4", 20, seed=i)
        masks = np.zeros((10, 24, 32), bool)
        for t in range(10 if i != 3 else 0):
            masks[t, i : i + 12, i + t : i + t + 12] = True
        tubes.append(Tube(f"{i:02d}.mp4", np.arange(10) / 12.5, masks))
    write_tubes(folder / "tubes.parquet", tube_table(tubes), source="test")
    return folder


def trained(
    name: str, official: bool, root: Path, folder: Path, start: Path | None = None
) -> tuple[nn.Module, dict[str, object]]:
    """Seven steps, five an epoch, and the optimiser's state after them."""
    torch.manual_seed(0)
    image = name == KINDS[0]
    kind, backbone = (
        (WatchedPreViTSMoCo, FrameNet()) if image else (WatchedPreViTSRSPNet, ClipNet())
    )
    colours = VideoViews(blur_kernel=5, shared=None if image else (0, 1, 1))
    method = kind(
        backbone,
        ObjectViews(colours, 32),
        SGD,
        projection=8,
        queue_size=8,
        momentum=0.9,
        lr_batch=None,
        official=official,
    )
    awake(method)
    if start is not None:
        torch.manual_seed(999)
    clips = TrackedPair(1, min_tracked=8) if image else TrackedSpeeds(4, min_tracked=8)
    trainer = fit(
        method,
        root / "videos",
        folder,
        start=start,
        clips=clips,
        window=WholeFrame((36, 48)),
        tubes=root / "tubes.parquet",
    )
    return method, trainer.optimizers[0].state_dict()


@pytest.mark.parametrize("official", [False, True], ids=["paper", "official"])
@pytest.mark.parametrize("name", KINDS)
def test_a_resumed_run_is_the_uninterrupted_one(
    root: Path, tmp_path: Path, name: str, official: bool
) -> None:
    """Stopped in the middle of an epoch: losses, queue, pointer, both networks, to the bit.

    On the way the key network moves by the momentum of 0.9 once a step, in the official form twice.
    """
    whole, optimizer = trained(name, official, root, tmp_path / "whole")
    start = tmp_path / "whole" / "step=3.ckpt"
    rest, continued = trained(name, official, root, tmp_path / "rest", start)
    assert len(whole.losses) == 7
    assert rest.losses == whole.losses[3:]
    assert sum(0.02 < losses["attention"] < 0.98 for losses in whole.losses) > 3
    expected, found = whole.state_dict(), rest.state_dict()
    assert expected["queue.pointer"].item() == 7 * 2 % 8
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key
    for place, kept in optimizer["state"].items():
        assert torch.equal(continued["state"][place]["momentum_buffer"], kept["momentum_buffer"])
    first = torch.load(start, weights_only=True)["state_dict"]
    assert not torch.equal(first["queue.keys"], expected["queue.keys"])
    old, new = (0.81, 0.19) if official else (0.9, 0.1)
    for before, online, after in whole.noted:
        moved = [
            key for key in before if key in online and not torch.equal(before[key], after[key])
        ]
        assert {key.split(".")[0] for key in moved} == set(whole.target)
        for key in online.keys() & before.keys():
            mixed = old * before[key] + new * online[key]
            assert torch.allclose(after[key], mixed, rtol=1e-5, atol=1e-8), key


@pytest.mark.parametrize("name", KINDS)
def test_attention_moves_to_the_object(name: str) -> None:
    """With a large weight on the attention loss the map becomes like the masks."""
    method = small(name, queue_size=8, attention_weight=100.0)
    made = augmented(method, dtype=torch.float32)
    optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=1e-2)
    history = []
    for _ in range(25):
        found = method._step(made)
        optimizer.zero_grad()
        found["loss"].backward()
        optimizer.step()
        history.append(found["attention"].item())
    assert history[-1] < 0.6 * history[0]
    assert not math.isnan(found["loss"].item())


def test_outputs_and_the_network_under_autocast() -> None:
    method = small("PreViTS of clips")
    made = augmented(method, dtype=torch.float32)
    exact = method._step(made)
    with torch.autocast("cpu", torch.bfloat16):
        found = method._step(made)
    assert found["cam"].dtype == found["loss"].dtype == torch.float32
    assert found["cam"].shape == (4, 2, 4, 4)
    assert found["mask"].shape == (4, 4, 8, 8)
    assert not found["cam"].requires_grad
    assert abs(found["attention"] - exact["attention"]) < 0.05
    found["loss"].backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cam": "softmax"}, "cam must be one of relu, minmax"),
        ({"attention": "slow"}, "attention must be one of fast, double"),
        ({"target": "code"}, "target must be one of paper, official"),
        ({"attention_weight": -3.0}, "got -3.0 for attention"),
    ],
)
@pytest.mark.parametrize("name", KINDS)
def test_options_that_do_not_fit(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(name, **options)


@pytest.mark.parametrize("name", KINDS)
def test_data_that_does_not_fit(name: str) -> None:
    method = small(name)
    made = augmented(method, dtype=torch.float32)
    for key in ("mask", "tracked"):
        with pytest.raises(ValueError, match="give the data its tubes"):
            method._step({k: v for k, v in made.items() if k != key})
    with pytest.raises(ValueError, match=r"mask must be \(B, V, T, h, w\) with the"):
        method._step({**made, "mask": made["mask"].repeat(1, 1, 3, 1, 1)})
