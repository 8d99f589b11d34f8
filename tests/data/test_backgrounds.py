"""Variants of foreground and background: against loops, by closed forms, and who gets whose."""

import numpy as np
import pytest
from scipy.io import savemat

from lightning_vssl.data.backgrounds import (
    MIXED,
    VARIANTS,
    Strip,
    bounding_box,
    draw_backgrounds,
    largest_strip,
    only_background_tiled,
    rendered_file,
    variant_of,
    vary,
)
from lightning_vssl.data.boxes import VideoBoxes, box_table, write_boxes
from lightning_vssl.data.decode import UnreadableVideo
from lightning_vssl.data.foregrounds import BoxForeground, Puppets, read_puppet

SHAPE = (5, 12, 16)


@pytest.fixture
def clip():
    """Frames without a black pixel, and a mask of a ragged blob that moves."""
    rng = np.random.default_rng(0)
    frames = rng.integers(1, 256, (*SHAPE, 3), dtype=np.uint8)
    masks = np.zeros(SHAPE, bool)
    for t in range(SHAPE[0]):
        masks[t, 3:8, 2 + t : 7 + t] = rng.random((5, 5)) < 0.6
        masks[t, 3, 4 + t] = masks[t, 7, 2 + t] = True
    return frames, masks


def tiled_slowly(frame, mask):
    """ONLY-BG-T as Xiao et al. say it: the whole image tiled, then the box copied from that."""
    ys, xs = np.nonzero(mask)
    if not len(ys):
        return frame.copy()
    y0, y1, x0, x1 = ys.min(), ys.max() + 1, xs.min(), xs.max() + 1
    strips = [frame[:y0], frame[y1:], frame[:, :x0], frame[:, x1:]]
    areas = [strip.shape[0] * strip.shape[1] for strip in strips]
    out = frame.copy()
    if max(areas) == 0:
        out[:] = 0
        return out
    strip = strips[areas.index(max(areas))]
    image = np.empty_like(frame)
    for y in range(frame.shape[0]):
        for x in range(frame.shape[1]):
            image[y, x] = strip[y % strip.shape[0], x % strip.shape[1]]
    out[y0:y1, x0:x1] = image[y0:y1, x0:x1]
    return out


def test_tiles_equal_a_loop_over_pixels():
    rng = np.random.default_rng(1)
    for _ in range(40):
        height, width = rng.integers(3, 14, 2)
        frame = rng.integers(1, 256, (height, width, 3), dtype=np.uint8)
        mask = np.zeros((height, width), bool)
        y, x = np.sort(rng.integers(0, height + 1, 2)), np.sort(rng.integers(0, width + 1, 2))
        mask[y[0] : y[1], x[0] : x[1]] = True  # also empty ones and whole frames
        made = only_background_tiled(frame[None], mask[None])[0]
        assert np.array_equal(made, tiled_slowly(frame, mask))


def test_the_largest_strip_is_taken_and_of_two_the_first():
    assert largest_strip(Strip(2, 3, 6, 8), 10, 16) == Strip(0, 8, 10, 16)  # right: 80
    assert largest_strip(Strip(1, 7, 2, 9), 10, 16) == Strip(2, 0, 10, 16)  # below: 128
    assert largest_strip(Strip(3, 0, 6, 16), 9, 16) == Strip(0, 0, 3, 16)  # above and below: 48
    assert largest_strip(Strip(0, 0, 9, 16), 9, 16) is None
    mask = np.zeros((9, 16), bool)
    assert bounding_box(mask) is None
    mask[8, 15] = mask[4, 2] = True
    assert bounding_box(mask) == Strip(4, 2, 9, 16)


def test_each_variant_keeps_and_takes_what_it_says(clip):
    frames, masks = clip
    background = np.full((3, *SHAPE[1:], 3), [[[[0]]], [[[7]]], [[[9]]]], np.uint8)
    made = {name: vary(name, frames, masks, background) for name in VARIANTS}
    seen = masks[..., None]
    assert np.array_equal(made["original"], frames)
    assert np.array_equal(made["only_fg"], np.where(seen, frames, 0))
    assert np.array_equal(made["no_fg"], np.where(seen, 0, frames))
    # Foreground and background make up the whole, and nothing is in both.
    assert np.array_equal(made["only_fg"] + made["no_fg"], frames)
    boxes = np.zeros_like(masks)
    for box, mask in zip(boxes, masks, strict=True):
        ys, xs = np.nonzero(mask)
        box[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1] = True
    assert boxes.sum() > masks.sum()
    assert np.array_equal(made["only_bg_b"], np.where(boxes[..., None], 0, frames))
    assert np.array_equal(made["only_bg_t"][~boxes], frames[~boxes])
    assert (made["only_bg_t"] > 0).all()  # no pixel of the frames is black: all were filled
    for name in MIXED:  # three frames of background for five: it starts over
        assert np.array_equal(made[name][masks], frames[masks])
        for t, grey in enumerate([0, 7, 9, 0, 7]):
            assert (made[name][t][~masks[t]] == grey).all()
    assert np.array_equal(frames, clip[0])  # nothing was written into the video


def test_a_frame_without_foreground_and_one_that_is_all_foreground():
    frames = np.full((2, 4, 6, 3), 100, np.uint8)
    masks = np.zeros((2, 4, 6), bool)
    masks[1] = True
    for name in ("no_fg", "only_bg_b", "only_bg_t"):
        made = vary(name, frames, masks)
        assert (made[0] == 100).all()
        assert (made[1] == 0).all()
    assert vary("only_fg", frames, masks).mean(axis=(1, 2, 3)).tolist() == [0, 100]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variant": "only_sky"}, "variant='only_sky': choose original, mixed_same"),
        ({"masks": np.zeros((5, 12, 15), bool)}, r"masks \(5, 12, 15\) do not fit frames"),
        ({"background": None}, "mixed_rand needs a background"),
        ({"background": np.zeros((0, 12, 16, 3), np.uint8)}, "frames as large as the video's"),
        ({"background": np.zeros((5, 12, 18, 3), np.uint8)}, "frames as large as the video's"),
    ],
)
def test_what_does_not_fit_is_refused(clip, change, message):
    frames, masks = clip
    arguments = {"variant": "mixed_rand", "masks": masks, "background": frames, **change}
    with pytest.raises(ValueError, match=message):
        vary(frames=frames, **arguments)


class TestDraws:
    labels = np.repeat(np.arange(6), 40)

    def test_pairs_follow_same_random_and_next(self):
        usable = np.ones(len(self.labels), bool)
        usable[::7] = False
        drawn = draw_backgrounds(self.labels, usable)
        rows = np.arange(len(drawn))
        assert (drawn != rows[:, None]).all()
        assert usable[drawn].all()
        classes = self.labels[drawn]  # (N, 3)
        assert (classes[:, 0] == self.labels).all()
        assert (classes[:, 2] == (self.labels + 1) % 6).all()
        counts = np.bincount(classes[:, 1], minlength=6)  # 240 draws from 6: 40 +- 5.8
        assert counts.min() > 15
        assert 15 < (classes[:, 1] == self.labels).sum() < 65  # its own class too
        assert len(np.unique(drawn[:, 0])) > 100  # not always the same video

    def test_classes_are_drawn_evenly_whatever_their_size(self):
        labels = np.repeat([0, 1], [900, 20])
        drawn = draw_backgrounds(labels, np.ones(len(labels), bool))
        assert 0.42 < (labels[drawn[:, 1]] == 1).mean() < 0.58

    def test_the_seed_tells(self):
        usable = np.ones(len(self.labels), bool)
        first, again, other = (draw_backgrounds(self.labels, usable, seed=s) for s in (3, 3, 4))
        assert np.array_equal(first, again)
        assert (first != other).mean() > 0.9

    def test_alone_in_a_class_it_gets_its_own(self):
        drawn = draw_backgrounds(np.array([0, 1, 3]), np.array([True, True, True]))
        assert drawn[:, 0].tolist() == [0, 1, 2]
        assert drawn[:, 2].tolist() == [1, 2, 0]  # class 2 has no video: 3 is next to 1
        assert (drawn[:, 1] != np.arange(3)).all()
        lost = draw_backgrounds(np.array([0, 0, 1]), np.array([True, True, False]))
        assert lost.tolist() == [[1, 1, 1], [0, 0, 0], lost[2].tolist()]
        assert set(lost[2].tolist()) <= {0, 1}

    def test_no_class_or_nothing_to_read_is_refused(self):
        for labels, usable in (([0, -1], [True, True]), ([0, 1], [False, False])):
            with pytest.raises(ValueError, match="videos that can be read, and the classes of all"):
                draw_backgrounds(np.array(labels), np.array(usable))


def test_files_are_named_by_variant_class_and_video(tmp_path):
    file = rendered_file(tmp_path, "no_fg", "brush hair", "val/brush_hair/A_(b).1_000_010.mp4")
    assert file == tmp_path / "no_fg" / "brush_hair" / "A_(b).1_000_010.mp4"
    folder = rendered_file(tmp_path, "original", "jump", "Rename_Images/jump/A.avi_part.2")
    assert folder == tmp_path / "original" / "jump" / "A.avi_part.2.mp4"
    assert variant_of(VARIANTS, tmp_path, [str(file), str(folder)]).tolist() == [5, 0]


class TestPuppets:
    def write(self, file, **variables):
        file.parent.mkdir(parents=True, exist_ok=True)
        savemat(file, variables)
        return file

    def test_the_last_mask_is_repeated_and_what_is_too_much_left_out(self, tmp_path):
        masks = np.random.default_rng(0).integers(0, 2, (4, 6, 3), dtype=np.uint8)
        file = self.write(tmp_path / "puppet_mask.mat", part_mask=masks)
        own = masks.transpose(2, 0, 1) > 0
        assert np.array_equal(read_puppet(file, 3), own)
        assert np.array_equal(read_puppet(file, 5), own[[0, 1, 2, 2, 2]])
        assert np.array_equal(read_puppet(file, 2), own[:2])

    def test_a_single_mask_has_lost_its_last_axis(self, tmp_path):
        file = self.write(tmp_path / "puppet_mask.mat", part_mask=np.eye(4, 6, dtype=np.uint8))
        assert np.array_equal(read_puppet(file, 2), np.stack([np.eye(4, 6) > 0] * 2))

    def test_masks_are_found_beside_the_frames_and_scaled(self, tmp_path):
        mask = np.zeros((40, 80, 1), np.uint8)
        mask[:20, 40:] = 1
        self.write(tmp_path / "puppet_mask" / "run" / "a.b" / "puppet_mask.mat", part_mask=mask)
        video = tmp_path / "Rename_Images" / "run" / "a.b"
        found = Puppets().masks(video, tmp_path, np.zeros(2), (20, 40))
        assert found.shape == (2, 20, 40)
        assert found[1][:10, 20:].all()
        assert found[1].sum() == 200
        for shown in ((14, 26), (22, 42)):  # of 40 x 80, both sides even
            assert Puppets().masks(video, tmp_path, np.zeros(2), shown).shape == (2, *shown)
        with pytest.raises(UnreadableVideo, match="its masks are 80 x 40, which does not fit"):
            Puppets().masks(video, tmp_path, np.zeros(2), (40, 40))

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "no such file of puppet masks"),
            (b"", "not a MATLAB file of puppet masks"),
            (b"PK\x03\x04 something else" * 20, "not a MATLAB file of puppet masks"),
        ],
    )
    def test_what_is_no_file_of_masks_is_named(self, tmp_path, content, message):
        file = tmp_path / "puppet_mask.mat"
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(UnreadableVideo, match=message) as caught:
            read_puppet(file, 3)
        assert str(file) in str(caught.value)

    def test_a_damaged_file_is_named_whatever_the_parser_raises(self, tmp_path):
        masks = np.random.default_rng(0).integers(0, 2, (24, 32, 5), dtype=np.uint8)
        file = tmp_path / "puppet_mask.mat"
        savemat(file, {"part_mask": masks}, do_compression=True)
        whole = file.read_bytes()
        for place in (200, len(whole) // 2, len(whole) - 3):  # zlib.error, not scipy's own
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
            with pytest.raises(UnreadableVideo, match="not a MATLAB file of puppet masks"):
                read_puppet(file, 5)

    @pytest.mark.parametrize("masks", [{"mask": np.ones((3, 4, 2))}, {"part_mask": "text"}])
    def test_other_variables_are_refused(self, tmp_path, masks):
        file = self.write(tmp_path / "puppet_mask.mat", **masks)
        with pytest.raises(UnreadableVideo, match=r"its part_mask must be numbers \(H, W, F\)"):
            read_puppet(file, 3)


def test_boxes_are_drawn_over_the_pixels_they_touch(tmp_path):
    boxes = np.full((2, 2, 4), np.nan)
    boxes[0, 0] = [0.13, 0.3, 0.47, 0.49]  # of 20 x 8 pixels: 2.6 to 9.4, 2.4 to 3.92
    boxes[1] = [[0, 0, 0.17, 1], [0.91, 0.9, 1, 1]]
    table = box_table([VideoBoxes("some/a.mp4", np.array([0.0, 1.0]), boxes)])
    write_boxes(tmp_path / "boxes.parquet", table, source="drawn")
    source = BoxForeground(tmp_path / "boxes.parquet", cache_dir=tmp_path / "cache")
    times = np.array([0.0, 0.4, 0.6, 1.0])
    masks = source.masks(tmp_path / "some" / "a.mp4", tmp_path, times, (8, 20))
    expected = np.zeros((2, 8, 20), bool)
    expected[0, 2:4, 2:10] = True
    expected[1, :, :4] = True
    expected[1, 7:, 18:] = True
    assert np.array_equal(masks, expected[[0, 0, 1, 1]])
    assert source.settings["source"] == "drawn"
    with pytest.raises(UnreadableVideo, match="no boxes of it in"):
        source.masks(tmp_path / "some" / "b.mp4", tmp_path, times, (8, 20))
