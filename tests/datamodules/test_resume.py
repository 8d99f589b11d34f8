"""Killed in the middle of an epoch and resumed: the same samples and the same losses."""

import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_vssl.data.clips import JitteredClip
from lightning_vssl.data.windows import ScaleCrop
from lightning_vssl.datamodules.video_folder import VideoFolder
from tests.videos import write_numbered

VIDEOS, BATCH, EPOCHS = 15, 4, 3
STEPS = VIDEOS // BATCH


class Recorder(LightningModule):
    """A toy whose loss depends on every sample so far; keeps (key, loss) of each step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(3, 1)
        self.steps: dict[int, tuple[list[int], float]] = {}

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        pixels = batch["video"].float().mean((1, 2, 4, 5)) / 255  # (B, 3)
        loss = (self.layer(pixels) - batch["time"].float().mean((1, 2))[:, None]).square().mean()
        number = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        self.steps[number] = (batch["key"].tolist(), loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        assert self.trainer.estimated_stepping_batches > 0  # makes the loader before it is restored
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for i in range(VIDEOS):
        write_numbered(folder / f"{i:02d}.mp4", 20 + i, seed=i)
    return folder


def run(
    root: Path, folder: Path, *, workers: int = 0, accumulate: int = 1, start: Path | None = None
) -> dict[int, tuple[list[int], float]]:
    """Trains, with a checkpoint after every step; returns what each step saw."""
    data = VideoFolder(
        root,
        clips=JitteredClip(4),
        window=ScaleCrop(16, (16, 20)),
        batch_size=BATCH,
        num_workers=workers,
        seed=7,
    )
    module = Recorder()
    keep = ModelCheckpoint(
        folder, filename="{step}", every_n_train_steps=1, save_top_k=-1, save_last=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=EPOCHS,
            limit_val_batches=0,
            accumulate_grad_batches=accumulate,
            callbacks=[keep],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(module, data, ckpt_path=start)
    return module.steps


@pytest.mark.parametrize(("workers", "accumulate"), [(0, 1), (2, 2)])
def test_resumed_runs_see_what_the_uninterrupted_one_saw(root, tmp_path, workers, accumulate):
    whole = run(root, tmp_path / "whole", accumulate=accumulate)
    assert sorted(whole) == list(range(1, STEPS * EPOCHS + 1))
    keys = [key for step in sorted(whole) for key in whole[step][0]]
    assert len(set(keys)) == len(keys) == STEPS * EPOCHS * BATCH  # every epoch draws anew
    checkpoints = sorted((tmp_path / "whole").glob("*.ckpt"))
    assert len(checkpoints) >= EPOCHS
    for number, start in enumerate(checkpoints):
        resumed = run(
            root, tmp_path / f"{number}", workers=workers, accumulate=accumulate, start=start
        )
        assert resumed == {step: whole[step] for step in resumed}
        done = torch.load(start, weights_only=True)["loops"]["fit_loop"]
        seen = done["epoch_loop.batch_progress"]["total"]["processed"]
        assert sorted(resumed) == list(range(seen + 1, STEPS * EPOCHS + 1))
    again = tmp_path / "0" / "step=4.ckpt"  # a resumed run may be resumed
    twice = run(root, tmp_path / "twice", workers=workers, accumulate=accumulate, start=again)
    assert twice == {step: whole[step] for step in twice}
    assert max(twice, default=0) == STEPS * EPOCHS
