"""Supervised masks as saliency: a segmenter's, and pictures of labels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional
from torchvision.models import get_model

from lightning_vssl.tracking import PngMasks, Segmenter

NAME = "lraspp_mobilenet_v3_large"  # the smallest


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return get_model(NAME, weights=None, weights_backbone=None).eval()


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, 40, 64), dtype=torch.uint8)


class TestSegmenter:
    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    def test_it_is_the_probability_of_any_class(self, network, frames, tmp_path, suffix):
        file = tmp_path / f"weights{suffix}"
        state = network.state_dict()
        if suffix == ".pth":
            torch.save({"model": state}, file)
        else:
            save_file(state, file)
        segmenter = Segmenter(NAME, str(file), size=64, short_side=40, frames_at_once=2)
        maps = segmenter(frames)
        assert maps.shape == (3, 40, 64)
        assert maps.dtype == torch.float32
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        for frame, found in zip(frames, maps, strict=True):
            pixels = (frame / 255 - mean[:, None, None]) / std[:, None, None]
            seen = functional.interpolate(pixels[None], (64, 102), mode="bilinear", antialias=True)
            with torch.no_grad():
                none = network(seen)["out"].softmax(1)[:, :1]
            expected = 1 - functional.interpolate(none, (40, 64), mode="bilinear")[0, 0]
            assert torch.allclose(found, expected, atol=1e-4)
        persons = Segmenter(NAME, str(file), classes=("person", "dog"), size=64)(frames)
        assert (persons < maps).all()
        assert str(segmenter.settings["weights"]).startswith("sha256 ")
        assert str(file) not in str(segmenter.settings)  # which may move

    def test_an_auxiliary_head_is_not_needed(self, tmp_path):
        whole = get_model("fcn_resnet50", weights=None, weights_backbone=None, aux_loss=True)
        torch.save(whole.state_dict(), tmp_path / "fcn.pth")
        segmenter = Segmenter("fcn_resnet50", str(tmp_path / "fcn.pth"))
        segmenter.load()
        own = segmenter.network.state_dict()
        assert all(torch.equal(value, whole.state_dict()[name]) for name, value in own.items())

    def test_wrong_settings(self, tmp_path):
        with pytest.raises(ValueError, match="network='unet': choose one of"):
            Segmenter("unet")
        with pytest.raises(ValueError, match=r"classes=\('cow', 'unicorn'\): choose of aeroplane"):
            Segmenter(NAME, None, classes=("cow", "unicorn"))
        with pytest.raises(ValueError, match="size=0"):
            Segmenter(NAME, None, size=0)
        with pytest.raises(ValueError, match="there is no such file, and torchvision's"):
            Segmenter(NAME, "none.pth").load()
        save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
        with pytest.raises(ValueError, match=f"do not fit {NAME}"):
            Segmenter(NAME, str(tmp_path / "x.safetensors")).load()


def written(folder: Path, frame: int, labels: np.ndarray, mode: str = "P") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(labels.astype(np.uint8), "L" if mode == "RGB" else mode)
    if mode == "P":
        picture.putpalette([0, 0, 0, 20, 0, 0, 0, 20, 0])
    picture.convert("RGB" if mode == "RGB" else mode).save(folder / f"{frame:05d}.png")


class TestPngMasks:
    @pytest.mark.parametrize("mode", ["P", "L", "RGB"])
    def test_labels_are_objects(self, tmp_path, mode):
        labels = np.zeros((20, 30), int)
        labels[2:8, 3:9], labels[12:16, 20:30] = 1, 2
        for frame in (4, 6):
            written(tmp_path / "a" / "clip", frame, np.roll(labels, frame, axis=1), mode)
        frames = torch.zeros(2, 3, 40, 60, dtype=torch.uint8)
        for chosen, expected in (((), labels > 0), ((2,), labels == 2)):
            maps = PngMasks(str(tmp_path), labels=chosen)(frames, "a/clip.mp4", [4, 6])
            for row, shift in zip(maps, (4, 6), strict=True):
                own = np.roll(expected, shift, axis=1)
                large = np.asarray(Image.fromarray(own).resize((60, 40), Image.Resampling.NEAREST))
                assert np.array_equal(row.numpy() >= 0.5, large)

    def test_a_frame_without_a_file(self, tmp_path):
        written(tmp_path / "clip", 0, np.ones((4, 6)))
        frames = torch.zeros(2, 3, 4, 6, dtype=torch.uint8)
        with pytest.raises(FileNotFoundError, match=r"no mask .*clip/00001\.png"):
            PngMasks(str(tmp_path))(frames, "clip.mp4", [0, 1])
        maps = PngMasks(str(tmp_path), missing="lost")(frames, "clip.mp4", [0, 1])
        assert maps.flatten(1).any(1).tolist() == [True, False]

    def test_masks_of_another_size(self, tmp_path):
        written(tmp_path / "clip", 0, np.ones((60, 40)))
        frames = torch.zeros(1, 3, 40, 60, dtype=torch.uint8)
        with pytest.raises(ValueError, match=r"mask has 60 x 40 pixels, its frame 40 x 60"):
            PngMasks(str(tmp_path))(frames, "clip.mp4")

    def test_no_picture(self, tmp_path):
        (tmp_path / "clip").mkdir()
        (tmp_path / "clip" / "00000.png").write_bytes(b"no picture")
        with pytest.raises(ValueError, match=r"00000\.png: not a whole picture"):
            PngMasks(str(tmp_path))(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "clip.mp4")
        written(tmp_path / "cut", 0, np.random.default_rng(0).integers(0, 3, (50, 50)))
        file = tmp_path / "cut" / "00000.png"
        file.write_bytes(file.read_bytes()[:200])
        with pytest.raises(ValueError, match="not a whole picture"):
            PngMasks(str(tmp_path))(torch.zeros(1, 3, 50, 50, dtype=torch.uint8), "cut.mp4")

    def test_wrong_settings(self, tmp_path):
        with pytest.raises(NotADirectoryError, match="no such folder of masks"):
            PngMasks(str(tmp_path / "no"))
        for wrong in ({"pattern": "{clip}.png"}, {"missing": "skip"}, {"short_side": 0}):
            with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
                PngMasks(str(tmp_path), **wrong)
