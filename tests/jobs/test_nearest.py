"""Frames take the class of the labelled image nearest to them."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from lightning_vssl.backbones.base import Backbone
from lightning_vssl.curation.titles import ClassNames
from lightning_vssl.datamodules.videonet import VideoCandidates
from lightning_vssl.jobs.curate import CurateJob
from lightning_vssl.jobs.nearest import NearestImages
from lightning_vssl.run import RunCLI
from tests.callbacks.parts import TinyBackbone
from tests.videos import write_video

RECIPE = Path(__file__).parents[2] / "recipes" / "jobs" / "curate.yaml"
CLASSES = ClassNames(("red", "green", "blue"), (("red",), ("green",), ("blue",)))
COLOURS = {"red": (200, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 200)}


class Mean(Backbone):
    """The pixels themselves."""

    def __init__(self) -> None:
        pixels = [[0.0] * 3, [1.0] * 3]
        super().__init__(
            channels={"stem": 3}, strides={"stem": (1, 1)}, init_args={}, pixels=pixels, dims=2
        )

    def stage(self, name: str, x: Tensor) -> Tensor:
        return x


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("red", "blue"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for shift in (0, 30):
            pixels = np.full((20, 30, 3), np.array(COLOURS[name]) + shift, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{shift}.png")
    return tmp_path / "images"


def test_the_class_of_the_nearest_image(images):
    near = NearestImages(Mean(), images, least=0.9, size=8, frames_at_once=2)
    near.prepare(CLASSES)
    colours = [(180, 30, 10), (20, 200, 20), (10, 0, 90), (80, 90, 100), (255, 0, 0)]
    frames = torch.tensor(colours, dtype=torch.uint8)[:, :, None, None].expand(-1, -1, 8, 8)
    assert near(frames).tolist() == [0, -1, 2, -1, 0]
    near.least = -1.0
    rows = torch.tensor(colours).double()
    bank = torch.tensor(
        [np.array(COLOURS[name]) + shift for name in ("blue", "red") for shift in (0, 30)]
    ).double()
    cosine = (rows @ bank.T) / rows.norm(dim=1)[:, None] / bank.norm(dim=1)
    assert near(frames).tolist() == [(2, 2, 0, 0)[i] for i in cosine.argmax(1)]


def test_it_curates(images, tmp_path):
    for name, colour in COLOURS.items():
        frames = np.full((40, 32, 32, 3), np.array(colour, np.uint8))
        write_video(tmp_path / f"{name}.mp4", frames, fps=4)
    rows = ["path,title,class", "red.mp4,a red,red", "green.mp4,green red,red", "blue.mp4,red,red"]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    (tmp_path / "c.csv").write_text("class,names\nred,red\nblue,blue\n")
    data = VideoCandidates(
        tmp_path, table=tmp_path / "t.csv", classes=tmp_path / "c.csv", cache_dir=tmp_path / "cache"
    )
    job = CurateJob(NearestImages(Mean(), images, least=0.9, size=8))
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    out = tmp_path / "out"
    Trainer(accelerator="cpu", devices=1, default_root_dir=out, **quiet).predict(job, data)
    table = pq.read_table(out / "videonet.parquet").to_pylist()
    assert [row["kept"] for row in table] == [True, False, False]
    assert [row["seen"] for row in table] == ["red", "", "blue"]
    assert table[1]["detail"] == "on none of 40 frames"


def test_the_recipes_command(tmp_path, monkeypatch):
    """Taking this classifier kept the file of the recipe's own, a supervised network's weights."""

    class Parsed(RunCLI):
        def instantiate_classes(self):
            pass

        def _run_subcommand(self, subcommand):
            pass

    header = " ".join(line.lstrip("# ") for line in RECIPE.read_text().split("\n\n")[0].split("\n"))
    alternative = header[header.index("--model.classifier NearestImages") :]
    words = alternative[: alternative.index(" Deviations:")].split()
    words = [
        {"<folder>": "pictures", "<export>": "runs/vito/seed0/export"}.get(w, w) for w in words
    ]
    monkeypatch.chdir(tmp_path)
    found = Parsed(["predict", "--config", str(RECIPE), *words]).config
    found = found.predict.model.init_args.classifier
    assert found.class_path == "lightning_vssl.jobs.nearest.NearestImages"
    assert found.init_args.backbone.class_path.endswith("TimmNet")
    assert found.init_args.backbone.init_args.name == "resnet50"
    assert str(found.init_args.backbone_weights) == "runs/vito/seed0/export"
    assert str(found.init_args.images) == "pictures"
    assert (found.init_args.size, found.init_args.crop) == (224, 0.875)
    assert "resnet50.safetensors" not in str(found)


def test_weights_and_settings(images, tmp_path):
    save_file(TinyBackbone(dims=2).state_dict(), tmp_path / "w.safetensors")
    near = NearestImages(TinyBackbone(dims=2), images, tmp_path / "w.safetensors", size=16)
    near.prepare(CLASSES)
    before = dict(near.settings)
    assert str(before["weights"]).startswith("sha256 ")
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(images / "red" / "more.png")
    again = NearestImages(TinyBackbone(dims=2), images, tmp_path / "w.safetensors", size=16)
    again.prepare(CLASSES)
    assert again.settings["images"] != before["images"]


def test_what_is_wrong(images, tmp_path):
    with pytest.raises(ValueError, match="TinyBackbone is a network over clips"):
        NearestImages(TinyBackbone(dims=3), images)
    with pytest.raises(ValueError, match=r"least=1.5"):
        NearestImages(Mean(), images, least=1.5)
    with pytest.raises(FileNotFoundError, match="no folder of labelled images"):
        NearestImages(Mean(), tmp_path / "none").prepare(CLASSES)
    with pytest.raises(FileNotFoundError):
        NearestImages(Mean(), images, tmp_path / "none.safetensors").prepare(CLASSES)
    broken = images / "red" / "broken.png"
    broken.write_text("no image")
    near = NearestImages(Mean(), images, size=8)
    near.prepare(CLASSES)
    with pytest.raises(ValueError, match=r"cannot read the labelled image .*broken.png"):
        near(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    (images / "pink").mkdir()
    with pytest.raises(ValueError, match="folders that are no class: pink"):
        NearestImages(Mean(), images).prepare(CLASSES)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no images"):
        NearestImages(Mean(), tmp_path / "empty").prepare(CLASSES)
