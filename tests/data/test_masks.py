"""Masks on disk: ids come back as they were, and what is no mask of DAVIS's kind is refused."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_vssl.data.masks import MaskedSequence, davis_palette, read_mask, write_mask
from lightning_vssl.data.sequences import FrameSequence, UnreadableFrame


def ids(height=6, width=9):
    drawn = np.zeros((height, width), np.uint8)
    drawn[1:4, 2:5], drawn[4:, 6:] = 1, 2
    return drawn


def palette_png(file, pixels, palette):
    image = Image.fromarray(pixels)
    image.putpalette(palette)
    image.save(file)


def cut_palette(file, length):
    """Leaves the first bytes of a PNG's palette, which Pillow would not write."""
    content = file.read_bytes()
    at = content.index(b"PLTE")
    (had,) = struct.unpack(">I", content[at - 4 : at])
    chunk = content[at : at + 4 + length]
    made = struct.pack(">I", length) + chunk + struct.pack(">I", zlib.crc32(chunk))
    file.write_bytes(content[: at - 4] + made + content[at + 8 + had :])


def test_palette_is_the_official_one():
    """The first colours as the paper's page and VOC's kit give them."""
    colours = np.array(davis_palette()).reshape(256, 3)
    first = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert colours[:5].tolist() == first
    assert colours[[8, 9, 255]].tolist() == [[64, 0, 0], [192, 0, 0], [224, 224, 192]]


def test_written_and_read(tmp_path):
    file = tmp_path / "sequence" / "00000.png"
    write_mask(file, ids())
    assert (read_mask(file) == ids()).all()
    with Image.open(file) as image:  # as the official tools read it
        assert image.mode == "P"
        assert image.getpalette() == list(davis_palette())
        assert (np.array(image) == ids()).all()
    assert [one.name for one in file.parent.iterdir()] == ["00000.png"]


def test_union(tmp_path):
    """All objects are one, void stays void; grey masks of 2016 have 255 for the object."""
    drawn = ids()
    drawn[0, 0] = 255
    palette_png(tmp_path / "ids.png", drawn, davis_palette())
    assert read_mask(tmp_path / "ids.png")[0, 0] == 255
    one = read_mask(tmp_path / "ids.png", union=True)
    assert one[0, 0] == 255
    assert ((one == 1) == ((drawn == 1) | (drawn == 2))).all()
    Image.fromarray(np.where(ids() > 0, 255, 0).astype(np.uint8)).save(tmp_path / "grey.png")
    assert (read_mask(tmp_path / "grey.png", union=True) == (ids() > 0)).all()
    with pytest.raises(ValueError, match=r"grey.png: holds 0 and 255 alone.*set year: 2016"):
        read_mask(tmp_path / "grey.png")


@pytest.mark.parametrize("alpha", [False, True])
def test_grey_kept_as_colours(tmp_path, alpha):
    """As bear/00077.png of DAVIS-2016, which has four channels; of real colours none is taken."""
    there = ids() > 0
    picture = np.repeat(np.where(there, 255, 0).astype(np.uint8)[..., None], 3, axis=2)
    if alpha:
        picture = np.concatenate([picture, np.full_like(picture[..., :1], 255)], axis=2)
    Image.fromarray(picture).save(tmp_path / "00077.png")
    assert (read_mask(tmp_path / "00077.png", union=True) == there).all()
    picture[0, 0, 1] = 7
    Image.fromarray(picture).save(tmp_path / "00078.png")
    with pytest.raises(ValueError, match=r"00078.png: .* RGB"):
        read_mask(tmp_path / "00078.png", union=True)


def test_soft_edges_are_refused(tmp_path):
    """255 would be void beside other greys, and the object lost but for its edge."""
    soft = np.where(ids() == 1, 255, 0).astype(np.uint8)
    soft[0, 2:5] = 128
    Image.fromarray(soft).save(tmp_path / "soft.png")
    with pytest.raises(ValueError, match=r"soft.png: holds 255 and other greys"):
        read_mask(tmp_path / "soft.png", union=True)
    assert set(read_mask(tmp_path / "soft.png").flat) == {0, 128, 255}  # ids and void


def test_ids_without_a_palette(tmp_path):
    """Grey values as ids, as DAVIS's challenge sets have them."""
    Image.fromarray(ids()).save(tmp_path / "grey.png")
    assert (read_mask(tmp_path / "grey.png") == ids()).all()
    assert (read_mask(tmp_path / "grey.png", union=True) == (ids() > 0)).all()
    empty = np.zeros((4, 4), np.uint8)
    Image.fromarray(empty).save(tmp_path / "empty.png")
    assert (read_mask(tmp_path / "empty.png") == 0).all()


def test_nearly_the_official_palette(tmp_path):
    """VFS's has 191 where it should have 192."""
    near = [191 if value == 192 else value for value in davis_palette()]
    drawn = ids() * 9
    palette_png(tmp_path / "near.png", drawn, near)
    assert (read_mask(tmp_path / "near.png") == drawn).all()


def test_other_palettes_are_refused(tmp_path):
    other = list(davis_palette())
    other[3:6] = [255, 0, 0]
    palette_png(tmp_path / "other.png", ids(), other)
    with pytest.raises(ValueError, match=r"other.png: its palette is not DAVIS's: id 1 has the"):
        read_mask(tmp_path / "other.png")
    palette_png(tmp_path / "unused.png", np.where(ids() == 1, 0, ids()), other)
    assert read_mask(tmp_path / "unused.png").max() == 2
    palette_png(tmp_path / "short.png", ids(), davis_palette()[:9])
    cut_palette(tmp_path / "short.png", 6)
    with pytest.raises(ValueError, match="id 2 has no colour"):
        read_mask(tmp_path / "short.png")


def test_colours_are_refused(tmp_path):
    Image.fromarray(ids()).convert("RGB").save(tmp_path / "colours.png")
    with pytest.raises(ValueError, match=r"colours.png: .* RGB pixels"):
        read_mask(tmp_path / "colours.png")


def test_broken_files_are_named(tmp_path):
    with pytest.raises(UnreadableFrame, match=r"00000.png: no such file"):
        read_mask(tmp_path / "00000.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UnreadableFrame, match=r"text.png"):
        read_mask(tmp_path / "text.png")
    noise = np.random.default_rng(0).integers(0, 3, (200, 200), dtype=np.uint8)
    write_mask(tmp_path / "whole.png", noise)
    content = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(UnreadableFrame, match=r"cut.png"):
        read_mask(tmp_path / "cut.png")


def sequence(folder, sizes):
    frames, masks = [], []
    for t, (frame, mask) in enumerate(sizes):
        frames.append(folder / f"{t:05d}.jpg")
        masks.append(folder / f"{t:05d}.png")
        Image.fromarray(np.zeros((*frame, 3), np.uint8)).save(frames[-1])
        write_mask(masks[-1], ids(*mask))
    return MaskedSequence(FrameSequence("walk", tuple(frames)), tuple(masks))


def test_sequence(tmp_path):
    found = sequence(tmp_path, [((6, 9), (6, 9))] * 3)
    found.check_sizes()
    assert (len(found), found.name) == (3, "walk")
    assert torch.equal(found.mask(-1), torch.from_numpy(ids()))
    assert sum(1 for _ in found.masks()) == 3
    assert found.to(torch.device("meta")) is found


def test_mask_one_pixel_off(tmp_path):
    found = sequence(tmp_path, [((6, 9), (6, 9)), ((6, 9), (6, 10))])
    with pytest.raises(ValueError, match=r"00001.png: 10 x 6 pixels, .* 00001.jpg has 9 x 6"):
        found.check_sizes()


def test_as_many_masks_as_frames(tmp_path):
    found = sequence(tmp_path, [((6, 9), (6, 9))] * 2)
    with pytest.raises(ValueError, match="walk: 1 masks for 2 frames"):
        MaskedSequence(found.frames, found.files[:1])
