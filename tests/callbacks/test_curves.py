"""Learning curves: what is read, what is drawn, and what is said of files that are not right."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torch.utils.data import DataLoader

from lightning_vssl.callbacks.curves import LearningCurves, draw_curves, read_curve
from lightning_vssl.run import RunCSVLogger

TABLE = """epoch,step,train/loss,val/top1
0,1,4.0,
0,3,2.0,
0,3,,12.5
,4,9.0,
1,5,1.0,
1,7,,50
"""


class Falling(LightningModule):
    """Its loss is 1 / (1 + batches seen), its accuracy ten times the epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.seen = 0

    def training_step(self, batch, batch_idx):
        self.log("train/loss", 1 / (1 + self.seen))
        self.seen += 1
        return self.weight * batch.sum()

    def validation_step(self, batch, batch_idx):
        self.log("val/top1", 10.0 * (self.current_epoch + 1), batch_size=1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def run(folder, epochs, **options):
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        max_epochs=epochs,
        check_val_every_n_epoch=2,
        logger=RunCSVLogger(str(folder)),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        callbacks=[LearningCurves(**options)],
    )
    data = DataLoader(torch.ones(3, 1))
    trainer.fit(Falling(), data, data)


def test_reads_the_mean_of_each_epoch(tmp_path):
    (tmp_path / "metrics.csv").write_text(TABLE)
    assert read_curve(tmp_path / "metrics.csv", "train/loss") == [(1, 3.0), (2, 1.0)]
    assert read_curve(tmp_path / "metrics.csv", "val/top1") == [(1, 12.5), (2, 50.0)]
    assert read_curve(tmp_path / "metrics.csv", "val/top5") == []


def test_what_validate_adds_later_is_no_epoch(tmp_path):
    """`lightning-vssl validate` logs into the run's file, under epoch 0 and step 0."""
    (tmp_path / "metrics.csv").write_text(TABLE + "0,0,,50\n2,9,,60\n")
    curve = read_curve(tmp_path / "metrics.csv", "val/top1")
    assert curve == [(1, 12.5), (2, 50.0), (3, 60.0)]


def test_what_is_drawn_is_what_was_read():
    figure = draw_curves(
        {"pretrained": [(1, 2.0), (2, 1.0)], "scratch": [(1, 3.0)]},
        {"pretrained": [(2, 86.2)], "scratch": []},
        accuracy="top1",
    )
    left, right = figure.axes
    drawn = [(line.get_label(), *map(list, line.get_data())) for line in left.lines]
    assert drawn == [("pretrained", [1, 2], [2.0, 1.0]), ("scratch", [1], [3.0])]
    drawn = [(line.get_label(), *map(list, line.get_data())) for line in right.lines]
    assert drawn == [("pretrained, last 86.2", [2], [86.2]), ("scratch", [], [])]
    assert left.get_xlim() == right.get_xlim()


def test_two_runs_in_one_picture(tmp_path, monkeypatch):
    run(tmp_path / "scratch", 2)
    assert (tmp_path / "scratch" / "curves.png").is_file()
    seen = []

    def noted(losses, accuracies, *, accuracy):
        seen.append((dict(losses), dict(accuracies), accuracy))
        return draw_curves(losses, accuracies, accuracy=accuracy)

    monkeypatch.setattr("lightning_vssl.callbacks.curves.draw_curves", noted)
    run(tmp_path / "run", 4, others={"scratch": tmp_path / "scratch"}, name="pretrained")
    assert len(seen) == 3  # after epochs 2 and 4, and at the end
    losses, accuracies, accuracy = seen[-1]
    assert accuracy == "top1"
    thirds = [(1 / (3 * e + 1) + 1 / (3 * e + 2) + 1 / (3 * e + 3)) / 3 for e in range(4)]
    assert [epoch for epoch, _ in losses["pretrained"]] == [1, 2, 3, 4]
    assert [value for _, value in losses["pretrained"]] == pytest.approx(thirds)
    assert [value for _, value in losses["scratch"]] == pytest.approx(thirds[:2])
    assert accuracies == {"pretrained": [(2, 20.0), (4, 40.0)], "scratch": [(2, 20.0)]}
    with Image.open(tmp_path / "run" / "curves.png") as picture:
        assert picture.width > picture.height > 300


def test_another_run_that_is_just_writing_does_not_end_this_one(tmp_path):
    """Lightning's logger writes the table anew when a number joins it: for a moment it is empty."""
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "metrics.csv").touch()
    with pytest.warns(UserWarning, match=r"scratch.metrics.csv is no metrics.csv of a run"):
        run(tmp_path / "run", 2, others={"scratch": tmp_path / "scratch"})
    assert not (tmp_path / "run" / "curves.png").exists()


def test_files_that_are_not_right_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"elsewhere \(others: scratch\) holds no metrics"):
        run(tmp_path, 1, others={"scratch": tmp_path / "elsewhere"})
    with pytest.raises(ValueError, match="'scratch', like this one"):
        LearningCurves({"scratch": tmp_path}, name="scratch")
    file = tmp_path / "metrics.csv"
    file.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"metrics.csv is no metrics.csv of a run"):
        read_curve(file, "train/loss")
    file.write_text(TABLE.replace("2.0", "2.0x"))
    with pytest.raises(ValueError, match=r"metrics.csv, line 3: '2.0x' \(train/loss\)"):
        read_curve(file, "train/loss")
