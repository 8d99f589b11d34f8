"""Maps from the disk and from networks: the right ones in the right place, or an error by name."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lightning_vssl.tracking import ModelSaliency, PngSaliency, Tracker


def write(folder, numbers, size=(48, 64), pattern="{:05d}.png"):
    """Maps whose left part is white: as many columns as the frame's number says."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        grey = np.zeros(size, np.uint8)
        grey[:, :number] = 255
        Image.fromarray(grey).save(folder / pattern.format(number))


def frames(count, height=48, width=64):
    return torch.zeros(count, 3, height, width, dtype=torch.uint8)


def test_maps_are_those_of_the_frames_asked_for(tmp_path):
    write(tmp_path / "cats" / "a", range(1, 11))
    maps = PngSaliency(str(tmp_path))(frames(3), "cats/a.mp4", [0, 4, 9])
    assert maps.shape == (3, 48, 64)
    assert maps.dtype == torch.float32
    assert maps.sum((1, 2)).tolist() == [48 * 1, 48 * 5, 48 * 10]  # the first is 00001.png
    whole = PngSaliency(str(tmp_path))(frames(10), "cats/a.mp4")
    assert whole.sum((1, 2)).tolist() == [48 * n for n in range(1, 11)]


def test_patterns_name_the_video_with_and_without_its_folders(tmp_path):
    write(tmp_path / "a", [0], pattern="map_{}.png")
    for video in ("cats/a.mp4", "a.webm"):
        source = PngSaliency(str(tmp_path), "{name}/map_{frame}.png", first=0)
        assert source(frames(1), video).shape == (1, 48, 64)


def test_large_maps_are_scaled_down_to_the_shape_of_the_frames(tmp_path):
    write(tmp_path / "a", [100], size=(240, 320))
    maps = PngSaliency(str(tmp_path), first=100, short_side=48)(frames(1, 60, 80), "a.mp4")
    assert maps.shape == (1, 48, 64)
    assert maps.mean() == pytest.approx(100 / 320, abs=0.002)
    assert maps[0, :, :19].min() > 0.99


def test_a_missing_map_is_named(tmp_path):
    write(tmp_path / "a", [1, 2])
    with pytest.raises(FileNotFoundError, match=re.escape("00003.png")):
        PngSaliency(str(tmp_path))(frames(3), "a.mp4")


def test_a_map_of_another_shape_is_refused_by_name(tmp_path):
    write(tmp_path / "a", [1], size=(48, 48))
    with pytest.raises(ValueError, match=r"00001.png.*48 x 48.*48 x 64"):
        PngSaliency(str(tmp_path))(frames(1), "a.mp4")
    # 854 x 480 is scaled to 114 x 64: not the same ratio to the last digit, but the same shape.
    write(tmp_path / "b", [1], size=(480, 854))
    assert PngSaliency(str(tmp_path))(frames(1, 64, 114), "b.mp4").shape == (1, 64, 114)


def test_a_file_that_is_no_picture_is_refused_by_name(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "00001.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"00001.png: not a picture"):
        PngSaliency(str(tmp_path))(frames(1), "a.mp4")


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_map_whose_end_is_missing_is_refused_by_name(tmp_path, share):
    write(tmp_path / "a", [1])
    file = tmp_path / "a" / "00001.png"
    noise = np.random.default_rng(0).integers(0, 256, (48, 64), np.uint8)
    Image.fromarray(noise).save(file)
    PngSaliency(str(tmp_path))(frames(1), "a.mp4")
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(ValueError, match=r"00001.png: not a whole picture"):
        PngSaliency(str(tmp_path))(frames(1), "a.mp4")


def test_a_folder_that_is_not_there_and_patterns_that_cannot_be(tmp_path):
    with pytest.raises(NotADirectoryError, match="nowhere"):
        PngSaliency(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="pattern"):
        PngSaliency(str(tmp_path), "{video}/{number}.png")
    with pytest.raises(ValueError, match="frame"):
        PngSaliency(str(tmp_path), "{video}.png")
    with pytest.raises(ValueError, match="short_side"):
        PngSaliency(str(tmp_path), short_side=0)


def test_the_tracker_follows_maps_from_the_disk(tmp_path):
    write(tmp_path / "a", range(11, 21))
    tracked = Tracker(PngSaliency(str(tmp_path)), short_side=48)(
        frames(4), "a.mp4", [10, 11, 18, 19]
    )
    assert tracked.boxes[:, 2].tolist() == [11, 12, 19, 20]


class Red(nn.Module):
    """Says how red a pixel is: one map, or two classes."""

    def __init__(self, classes: int = 1, logits: bool = False):
        super().__init__()
        self.classes = classes
        self.logits = logits

    def forward(self, pixels):
        red = pixels[:, :1]
        maps = red if self.classes == 1 else torch.cat([red, 1 - red], dim=1)
        return torch.logit(maps, 1e-4) if self.logits else maps


PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "size": (24, 32)}


def picture():
    """Frames whose right half is red, of 240 of 255."""
    video = frames(5)
    video[:, 0, :, 32:] = 240
    return video


@pytest.mark.parametrize("kind", ["script", "export"])
def test_a_network_from_a_file(tmp_path, kind):
    file = tmp_path / ("net.pt2" if kind == "export" else "net.pt")
    if kind == "script":
        torch.jit.script(Red()).save(str(file))
    else:
        batch = torch.export.Dim("batch", min=1, max=64)
        example = (torch.rand(2, 3, 24, 32),)
        made = torch.export.export(Red(), example, dynamic_shapes={"pixels": {0: batch}})
        torch.export.save(made, file)
    saliency = ModelSaliency(str(file), **PLAIN, frames_at_once=2)
    maps = saliency(picture())
    assert maps.shape == (5, 48, 64)
    torch.testing.assert_close(maps[:, :, 36:], torch.full((5, 48, 28), 240 / 255))
    assert maps[:, :, :28].abs().max() < 1e-6
    assert saliency.settings["weights"].startswith("sha256 ")
    tracked = Tracker(saliency, short_side=48)(picture())
    assert (tracked.boxes - torch.tensor([32.0, 0, 64, 48])).abs().max() <= 1


@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("channel", [0, 1])
def test_two_classes_and_logits(tmp_path, logits, channel):
    file = tmp_path / "net.pt"
    torch.jit.script(Red(2, logits)).save(str(file))
    if logits:  # the softmax of both logits, worked out by hand
        odds = (240 / 255 / (15 / 255)) ** 2
        red = odds / (1 + odds)
    else:
        red = 240 / 255
    maps = ModelSaliency(str(file), **PLAIN, logits=logits, channel=channel)(picture())
    wanted = red if channel == 0 else 1 - red
    torch.testing.assert_close(maps[0, :, 40:], torch.full((48, 24), wanted), atol=1e-4, rtol=0)


def test_numbers_that_are_no_saliency_are_refused(tmp_path):
    file = tmp_path / "net.pt"
    torch.jit.script(Red(1, True)).save(str(file))
    with pytest.raises(ValueError, match="logits=true"):
        ModelSaliency(str(file), **PLAIN)(picture())


def test_three_classes_are_refused(tmp_path):
    file = tmp_path / "net.pt"
    torch.jit.script(nn.Identity()).save(str(file))
    with pytest.raises(ValueError, match="two classes"):
        ModelSaliency(str(file), **PLAIN)(picture())


def test_files_that_are_no_network_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        ModelSaliency(str(tmp_path / "nothing.pt"))
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(ValueError, match="neither TorchScript"):
        ModelSaliency(str(tmp_path / "text.pt"))
    torch.jit.script(Red()).save(str(tmp_path / "net.pt"))
    with pytest.raises(ValueError, match="channel"):
        ModelSaliency(str(tmp_path / "net.pt"), channel=2)
