"""MoCLR and VITO as a whole: the step against the paper in loops, the target, what is exported."""

import copy
import functools
import math

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_vssl.augment.views import VideoViews
from lightning_vssl.backbones import PytorchvideoResNet, TimmNet
from lightning_vssl.backbones.weights import export, load_head
from lightning_vssl.methods.vito import VITO, MoCLR, frame_views
from lightning_vssl.nn.ema import cosine_momentum
from lightning_vssl.optim import Cosine
from tests.losses.test_multi_view import slow
from tests.methods.frames import FrameNet, frames

SGD = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-6)


def views_of(count: int) -> VideoViews:
    return VideoViews(
        saturation=0.2,
        semantics="byol",
        blur=(1.0, 0.1, 1.0)[:count],
        solarise=(0.0, 0.2, 0.0)[:count],
    )


def small(kind: type = VITO, **options: object) -> VITO | MoCLR:
    torch.manual_seed(0)
    settings = {"hidden": (16,), "projection": 8, "views": 3 if kind is VITO else 2, **options}
    if kind is VITO:
        settings = {"attention_hidden": 6, **settings}
    return kind(FrameNet(), views_of(settings["views"]), SGD, **settings)


def awake(method: nn.Module) -> None:
    """Attention starts as the average and lets no gradient through; the target is another net."""
    for attention in (method.attention, method.target["attention"]):
        for scale in attention.scales:
            nn.init.normal_(scale[-1].weight)
    for parameter in method.target.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))


def augmented(method: nn.Module, size: int = 4, dtype: torch.dtype = torch.float64) -> dict:
    made = method.augment(frames(size, method.views))
    return {**made, "views": made["views"].to(dtype)}


def slow_projections(parts: dict[str, nn.Module], views: Tensor, scales: int) -> Tensor:
    """Eq. 2 for one frame at a time; norms in eval."""
    rows = []
    for video in views[:, :, :, 0]:
        for frame in video:
            names = ("layer2", "layer3", "layer4")[-scales:]
            maps = parts["backbone"].features(frame[None], names)
            pooled = []
            for number, name in enumerate(names):
                positions = maps[name][0].flatten(1)  # (C, N)
                if parts["attention"].hidden is None:
                    pooled.append(positions.mean(1))
                    continue
                scores = parts["attention"].scales[number](positions.T)[:, 0]
                weights = [score.exp() for score in scores]
                total = sum(weights)
                pooled.append(
                    sum(w / total * positions[:, n] for n, w in enumerate(weights))  # Eq. 2
                )
            rows.append(parts["projector"](torch.cat(pooled)[None])[0])
    return torch.stack(rows).view(*views.shape[:2], -1)


CASES = [(VITO, {"views": views, "scales": scales}) for views in (2, 3) for scales in (1, 2, 3)] + [
    (VITO, {"attention_hidden": None}),
    (VITO, {"negatives": "same"}),
    (MoCLR, {}),
    (MoCLR, {"temperature": 0.2}),
]


@pytest.mark.parametrize(("kind", "options"), CASES, ids=str)
@torch.no_grad()
def test_step_equals_the_paper_in_loops(kind: type, options: dict[str, object]) -> None:
    method = small(kind, **options).double().eval()
    awake(method)
    made = augmented(method)
    scales = options.get("scales", 2) if kind is VITO else 1
    online = {name: getattr(method, name) for name in ("backbone", "attention", "projector")}
    z = slow_projections(online, made["views"], scales)
    k = slow_projections(method.target, made["views"], scales)
    expected = slow(z, k, options.get("temperature", 0.1), options.get("negatives", "all"))
    found = method._step(made)
    assert found["loss"].item() == pytest.approx(expected, rel=1e-9)
    assert found["attention"].shape[:3] == (4, method.views, scales)
    embedding = method.backbone(made["views"][:, 0, :, 0]).mean((2, 3))
    assert torch.allclose(found["embedding"], embedding)


def test_views_go_through_the_norms_one_by_one() -> None:
    method = small().double()
    made = augmented(method)
    other = {**made, "views": made["views"].clone()}
    other["views"][:, 1:] += 1.0
    assert torch.equal(method._step(made)["embedding"], method._step(other)["embedding"])


@pytest.mark.parametrize("kind", [VITO, MoCLR])
def test_target_gets_no_gradient_and_everything_else_does(kind: type) -> None:
    method = small(kind)
    awake(method)
    method._step(augmented(method, dtype=torch.float32))["loss"].backward()
    without = {n for n, p in method.named_parameters() if p.grad is None or not p.grad.any()}
    assert without == {n for n, _ in method.named_parameters() if n.startswith("target.")}
    assert all(p.grad is None for p in method.target.parameters())
    assert not any(p.requires_grad for p in method.target.parameters())


def test_target_is_a_copy_that_makes_its_own_statistics() -> None:
    method = small()
    online = {**dict(method.named_parameters()), **dict(method.named_buffers())}
    for name, value in [*method.target.named_parameters(), *method.target.named_buffers()]:
        assert torch.equal(value, online[name]), name
        assert value is not online[name]
    awake(method)
    method._step(augmented(method, dtype=torch.float32))
    ours = method.target["backbone"].blocks["layer4"][1]
    theirs = method.backbone.blocks["layer4"][1]
    assert ours.num_batches_tracked == theirs.num_batches_tracked == 3
    assert not torch.equal(ours.running_mean, theirs.running_mean)


class _Frames(Dataset[dict[str, Tensor]]):
    def __init__(self, views: int, count: int = 8) -> None:
        self.made = frames(count, views)

    def __len__(self) -> int:
        return len(self.made["index"])

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return {name: value[number] for name, value in self.made.items()}


class _Data(LightningDataModule):
    batch_size = 4

    def __init__(self, views: int) -> None:
        super().__init__()
        self.views = views

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(_Frames(self.views), batch_size=4)


class _Watched(VITO):
    """Notes online weights after each step and the target's before and after."""

    def optimizer_step(self, *args: object) -> None:
        before = copy.deepcopy(self.target.state_dict())
        super().optimizer_step(*args)
        online = {n: p.detach().clone() for n, p in self.named_parameters()}
        self.noted = [*getattr(self, "noted", []), (before, online)]
        self.after = [*getattr(self, "after", []), copy.deepcopy(self.target.state_dict())]


def fit(
    method: nn.Module,
    folder: object,
    steps: int,
    data: LightningDataModule | None = None,
    ckpt_path: object = None,
    **options: object,
) -> Trainer:
    trainer = Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        **options,
    )
    trainer.fit(method, datamodule=data or _Data(method.views), ckpt_path=ckpt_path)
    return trainer


@pytest.mark.parametrize("accumulate", [1, 2])
def test_momentum_at_every_step_and_what_it_moves(tmp_path: object, accumulate: int) -> None:
    """First, middle and last step by the formula; backbone, attention and projector all move."""
    torch.manual_seed(0)
    method = _Watched(
        FrameNet(), views_of(3), SGD, hidden=(16,), projection=8, attention_hidden=6, lr_batch=None
    )
    steps = 6
    trainer = fit(method, tmp_path, steps, accumulate_grad_batches=accumulate)
    assert len(method.noted) == trainer.global_step == steps
    for step, ((before, online), after) in enumerate(zip(method.noted, method.after, strict=True)):
        momentum = 1 - (1 - 0.99) * (1 + math.cos(math.pi * step / steps)) / 2
        moved = set()
        for name, value in before.items():
            if name not in online:
                continue  # statistics of batch norms: the target's own
            expected = momentum * value + (1 - momentum) * online[name]
            assert torch.allclose(after[name], expected, rtol=1e-5, atol=1e-8), (step, name)
            if not torch.equal(after[name], value):
                moved.add(name.split(".")[0])
        if step:  # the schedule-free rate moves everything from the first step on
            assert moved == {"backbone", "attention", "projector"}
    assert cosine_momentum(0, steps) == pytest.approx(0.99)
    assert cosine_momentum(3, steps) == pytest.approx(0.995)
    assert trainer.logged_metrics["train/momentum"] == pytest.approx(
        1 - 0.01 * (1 + math.cos(math.pi * 5 / 6)) / 2
    )


class _Steps(Callback):
    """Notes the loss and the momentum of each step; may stop after the third."""

    def __init__(self, stop: object = None) -> None:
        self.stop = stop
        self.loss: list[float] = []
        self.momentum: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *args: object) -> None:
        self.loss.append(trainer.callback_metrics["train/loss"].item())
        self.momentum.append(trainer.callback_metrics["train/momentum"].item())

    def on_train_epoch_end(self, trainer: Trainer, method: nn.Module) -> None:
        if self.stop is not None and trainer.global_step == 3:
            trainer.save_checkpoint(self.stop)
            trainer.should_stop = True


class _One(_Data):
    """One step an epoch."""

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(_Frames(self.views, count=4), batch_size=4)


def test_three_steps_and_three_more_are_six(tmp_path: object) -> None:
    """Losses, momentum, network and target of a run that stopped half-way."""
    runs = []
    for stop, more in (
        (None, {}),
        (tmp_path / "half.ckpt", {}),
        (None, {"ckpt_path": tmp_path / "half.ckpt"}),
    ):
        method, noted = small(lr_batch=None, schedule=Cosine(warmup_steps=2)), _Steps(stop)
        if more:  # nothing comes from the start
            for value in method.state_dict().values():
                value.zero_()
        trainer = fit(method, tmp_path, 6, data=_One(3), callbacks=[noted], **more)
        assert trainer.global_step == (6 if stop is None else 3)
        runs.append((method, noted))
    (whole, one), (_, first), (again, second) = runs
    assert len(one.loss) == 6
    assert len(set(one.loss)) == 5  # the warm-up starts at a rate of 0
    assert first.loss + second.loss == one.loss
    assert first.momentum + second.momentum == one.momentum
    expected = [1 - 0.01 * (1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)]
    assert one.momentum == pytest.approx(expected)
    state = again.state_dict()
    for name, value in whole.state_dict().items():
        assert torch.equal(state[name], value), name


class _Clips(_Data):
    """Held-out videos come as two clips of eight frames."""

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        held_out = _Frames(2)
        held_out.made["video"] = held_out.made["video"].repeat(1, 1, 8, 1, 1, 1)
        held_out.made["time"] = torch.arange(8.0).expand(8, 2, 8)
        return DataLoader(held_out, batch_size=4)


@pytest.mark.parametrize("kind", [VITO, MoCLR])
def test_validation_takes_frames_of_clips(tmp_path: object, kind: type) -> None:
    method = small(kind, lr_batch=None)
    trainer = fit(method, tmp_path, 2, data=_Clips(method.views))
    loss = trainer.callback_metrics["val/loss"]
    assert torch.isfinite(loss)
    assert loss > 0


def test_a_run_without_end_is_refused(tmp_path: object) -> None:
    with pytest.raises(ValueError, match="needs an end"):
        fit(small(lr_batch=None), tmp_path, -1)


@pytest.mark.parametrize("kind", [VITO, MoCLR])
def test_exported_head_is_the_attention(tmp_path: object, kind: type) -> None:
    method = small(kind, lr_batch=None)
    awake(method)
    trainer = fit(method, tmp_path, 2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    report = export(tmp_path / "last.ckpt", tmp_path / "export")
    assert report.heads == (("attention",) if kind is VITO else ())
    if kind is MoCLR:
        with pytest.raises(ValueError, match="attention"):
            load_head(tmp_path / "export", "attention")
        return
    head = load_head(tmp_path / "export", "attention")
    maps = [torch.randn(2, 12, 4, 4), torch.randn(2, 16, 2, 2)]
    assert torch.equal(head(maps)[0], method.attention.eval()(maps)[0])


def test_training_lowers_the_loss() -> None:
    method = small()
    made = augmented(method, size=8, dtype=torch.float32)
    optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=3e-3)
    history = []
    for _ in range(40):
        found = method._step(made)
        optimizer.zero_grad()
        found["loss"].backward()
        optimizer.step()
        for part in ("backbone", "attention", "projector"):
            for ours, theirs in zip(
                method.target[part].parameters(), getattr(method, part).parameters(), strict=True
            ):
                ours.lerp_(theirs.detach(), 0.1)
        history.append(found["loss"].item())
    assert history[-1] < 0.5 * history[0]
    assert found["attention"].std() > 1e-4  # no longer the average


def test_frame_views_of_clips() -> None:
    video = torch.arange(2 * 2 * 5).view(2, 2, 5, 1, 1, 1).expand(2, 2, 5, 3, 4, 4)
    batch = {"video": video, "time": video[..., 0, 0, 0], "crop": torch.zeros(2, 2, 4)}
    batch["tracked"] = torch.tensor([[True, False]] * 2)
    found = frame_views({**batch, "mask": video[:, :, :1, 0]}, 3)
    assert found["video"][0, :, 0, 0, 0, 0].tolist() == [2, 7, 2]
    assert found["time"].tolist() == [[[2], [7], [2]], [[12], [17], [12]]]
    assert found["mask"].shape == (2, 3, 1, 4, 4)
    assert found["crop"].shape == (2, 3, 4)
    assert found["tracked"].tolist() == [[True, False, True]] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views": 1}, "views must be at least 2"),
        ({"scales": 0}, "scales must be between 1 and the 5 stages"),
        ({"scales": 6}, "scales must be between"),
        ({"momentum": 1.5}, "momentum must lie"),
        ({"attention_hidden": 0}, "at least 1"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_data_that_does_not_fit() -> None:
    method = small()
    with pytest.raises(ValueError, match="takes views=3 clips of one frame, got 2 of 1"):
        method._step({"views": torch.zeros(4, 2, 3, 1, 32, 32)})
    with pytest.raises(ValueError, match="got 3 of 4"):
        method._step({"views": torch.zeros(4, 3, 3, 4, 32, 32)})
    with pytest.raises(ValueError, match="VITO learns from single frames"):
        VITO(PytorchvideoResNet(width=4, depth=(1, 1, 1, 1)), views_of(3), SGD)


def test_the_papers_projector_has_its_parameters() -> None:
    """1024 + 2048 -> 4096 -> 256 is 13.64 M on a ResNet-50, whose 23.51 M lie beside."""
    with torch.device("meta"):
        method = VITO(TimmNet("resnet50"), nn.Identity(), SGD)
    assert method.attention.out_features == 3072
    assert sum(p.numel() for p in method.projector.parameters()) == 13_643_776
    assert sum(p.numel() for p in method.backbone.parameters()) == 23_508_032
    assert [tuple(p.shape) for p in method.projector.parameters() if p.ndim == 2] == [
        (4096, 3072),
        (256, 4096),
    ]
