"""CtP's other label sources: what KCF follows, which clips label themselves, given boxes."""

import sys

import numpy as np
import pytest
import torch
from scipy import ndimage

from lightning_vssl.augment.label_sources import (
    AnnotatedTracks,
    CycleTracks,
    TeacherTracks,
    follow_kcf,
)
from lightning_vssl.augment.patches import CatchThePatch, PatchTracks
from lightning_vssl.nn.keyed import sample_key

SMALL = (9.0, 14.0, 18.0)


def keys(count):
    return torch.tensor([sample_key(0, 0, i) for i in range(count)])


def texture(height, width, seed):
    """Smooth colour noise over the whole range, (height, width, 3) uint8."""
    noise = np.random.default_rng(seed).normal(size=(height, width, 3))
    smooth = ndimage.gaussian_filter(noise, (2, 2, 0))
    low, high = smooth.min((0, 1)), smooth.max((0, 1))
    return ((smooth - low) / (high - low) * 255).astype(np.uint8)


def passing(frames, speed):
    """A textured square of 20 pixels that crosses a textured ground, and its boxes, (T, 4)."""
    clip = np.repeat(texture(64, 64, 0)[None], frames, axis=0)
    boxes = []
    for t in range(frames):
        x, y = 6 + speed[0] * t, 30 + speed[1] * t
        clip[t, y : y + 20, x : x + 20] = texture(20, 20, 1)
        boxes.append([x, y, x + 20, y + 20])
    return clip, np.array(boxes)


def plain(tracks, **options):
    """The view without a change of colour."""
    chances = dict.fromkeys(
        ("hue_probability", "brightness_probability", "contrast_probability"), 0.0
    )
    return CatchThePatch(tracks, **{**chances, **options})


class TestTeacher:
    @pytest.mark.parametrize("speed", [(2, 0), (1, -2), (0, 0)])
    def test_follows_an_object_to_the_pixel(self, speed):
        clip, boxes = passing(12, speed)
        found = follow_kcf(clip, boxes[0].tolist())
        assert (found[:, 4] == 1).all()
        assert np.abs(found[:, :4] - boxes).max() <= 1

    def test_what_is_lost_weighs_nothing_from_then_on(self):
        clip, boxes = passing(12, (2, 0))
        clip[6:] = 0
        clip[9:] = clip[5]  # it comes back, too late
        found = follow_kcf(clip, boxes[0].tolist())
        assert found[:, 4].tolist() == [1] * 6 + [0] * 6
        assert (found[6:, :4] == found[5, :4]).all()

    def test_the_box_of_what_leaves_the_frame_ends_at_its_border(self):
        ground = texture(64, 140, 0)
        clip = np.stack([ground[:, 4 * t : 4 * t + 64] for t in range(14)])
        found = follow_kcf(clip, (20, 20, 44, 44))
        assert found[:9, 4].all()
        assert found[:9, 0].tolist() == [20, 16, 12, 8, 4, 0, 0, 0, 0]
        assert found[:9, 2].tolist() == list(range(44, 8, -4))
        assert not found[11:, 4].any()  # gone

    def test_boxes_start_where_patches_do_and_clips_stay(self):
        video = torch.randint(0, 256, (3, 1, 6, 3, 64, 64), dtype=torch.uint8)
        teacher = plain(TeacherTracks(scales=SMALL), flip=0)
        made = teacher({"video": video, "key": keys(3)})
        patches = plain(PatchTracks(scales=SMALL), flip=0)({"video": video, "key": keys(3)})
        first = made["trajectories"][:, :, 0]
        assert torch.equal(first, patches["trajectories"][:, :, 0])
        assert (made["trajectory_weights"][..., 0] == 1).all()
        assert "own_labels" not in made
        pixels = made["views"][:, 0] * teacher.std.view(3, 1, 1, 1) + teacher.mean.view(3, 1, 1, 1)
        shown = video[:, 0].transpose(1, 2) / 255
        torch.testing.assert_close(pixels, shown, atol=1e-6, rtol=0)

    def test_a_sample_depends_on_no_other_and_on_no_thread(self):
        ground = torch.from_numpy(texture(64, 64, 0)).permute(2, 0, 1)
        pans = [torch.stack([ground.roll(speed * t, -1) for t in range(6)]) for speed in range(4)]
        video = torch.stack(pans)[:, None]  # (B, 1, T, 3, H, W)
        many = plain(TeacherTracks(scales=SMALL, threads=4))({"video": video, "key": keys(4)})
        one = plain(TeacherTracks(scales=SMALL, threads=1))
        alone = one({"video": video[2:3], "key": keys(4)[2:3]})
        for name in ("trajectories", "trajectory_weights"):
            assert torch.equal(many[name][2:3], alone[name])
        assert many["trajectories"].diff(dim=2).abs().amax((1, 2, 3)).tolist() == [0, 1, 2, 3]

    def test_the_tracker_is_shown_the_clips_own_pixels_blue_first(self, monkeypatch):
        seen = []

        def noted(frames, box):
            seen.append(frames)
            return np.ones((len(frames), 5), np.float32)

        monkeypatch.setattr("lightning_vssl.augment.label_sources.follow_kcf", noted)
        video = torch.randint(0, 256, (1, 1, 4, 3, 40, 48), dtype=torch.uint8)
        plain(TeacherTracks(scales=SMALL, trajectories=1), flip=0)({"video": video, "key": keys(1)})
        (frames,) = seen
        assert np.array_equal(frames[..., ::-1], video[0, 0].permute(0, 2, 3, 1).numpy())

    def test_what_it_needs_is_named(self, monkeypatch):
        with pytest.raises(ValueError, match="trajectories must be at least 1, got 0"):
            TeacherTracks(trajectories=0)
        with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
            TeacherTracks(threads=0)
        monkeypatch.setitem(sys.modules, "cv2", None)
        with pytest.raises(ImportError, match=r"pip install 'lightning-vssl\[regions\]'"):
            TeacherTracks()


class TestCycle:
    def test_a_quarter_of_the_clips_is_synthetic(self):
        drawn = CycleTracks().draw(keys(4000), 16, 112, 112)
        synthetic = drawn.shown.flatten(1).any(1)
        assert synthetic.float().mean().item() == pytest.approx(0.25, abs=0.02)
        still = (drawn.boxes == drawn.boxes[:, :, :1]).flatten(1).all(1)
        assert torch.equal(still, ~synthetic)
        # Which clips they are says nothing about their boxes.
        first = drawn.boxes[:, 0, 0].double()
        assert (first[synthetic].mean(0) - first[~synthetic].mean(0)).abs().max() < 5

    def test_synthetic_clips_are_those_of_patches_and_others_stay(self):
        video = torch.randint(0, 256, (8, 1, 6, 3, 64, 64), dtype=torch.uint8)
        patches = PatchTracks(scales=SMALL)
        batch = {"video": video, "key": keys(8)}
        made = plain(CycleTracks(patches, synthetic=0.5))(batch)
        pasted = plain(patches)(batch)
        untouched = plain(CycleTracks(patches, synthetic=0))(batch)
        own = made["own_labels"]
        assert 0 < own.sum() < 8
        assert untouched["own_labels"].all()
        for name in ("views", "trajectories"):
            assert torch.equal(made[name][~own], pasted[name][~own])
            assert torch.equal(made[name][own], untouched[name][own])
        assert not torch.equal(made["views"][~own], untouched["views"][~own])
        assert torch.equal(made["trajectories"][:, :, 0], pasted["trajectories"][:, :, 0])
        assert (made["trajectory_weights"] == 1).all()

    def test_a_share_that_is_none_is_refused(self):
        with pytest.raises(ValueError, match=r"synthetic must be a share in \[0, 1\], got 25"):
            CycleTracks(synthetic=25)


class TestAnnotated:
    def test_boxes_are_mirrored_with_the_pixels(self):
        video = torch.zeros(6, 1, 4, 3, 32, 48, dtype=torch.uint8)
        boxes = torch.zeros(6, 1, 4, 2, 4)
        for t in range(4):
            for n, (x, y) in enumerate([(3 + t, 5), (30 - t, 20)]):
                video[:, :, t, :, y : y + 6, x : x + 9] = 200 + 50 * n
                boxes[:, :, t, n] = torch.tensor([x, y, x + 9.0, y + 6])
        augment = plain(AnnotatedTracks())
        made = augment({"video": video, "key": keys(6), "boxes": boxes})
        flipped = made["patch_params"].flip
        assert 0 < flipped.sum() < 6
        assert made["trajectories"].shape == (6, 2, 4, 4)
        pixels = made["views"][:, 0, 0] * augment.std[0] + augment.mean[0]  # (B, T, H, W)
        for b in range(6):
            for t in range(4):
                for n in range(2):
                    inside = torch.zeros(32, 48, dtype=torch.bool)
                    x0, y0, x1, y1 = made["trajectories"][b, n, t].int().tolist()
                    inside[y0:y1, x0:x1] = True
                    level = (200 + 50 * n) / 255
                    assert torch.equal((pixels[b, t] - level).abs() < 1e-3, inside)

    def test_frames_without_a_box_weigh_nothing(self):
        boxes = torch.rand(3, 1, 5, 1, 4).sort(-1).values * 30
        boxes[0, 0, 3] = torch.nan
        boxes[1, 0, 0] = torch.nan  # no first box: nothing to ask for
        video = torch.zeros(3, 1, 5, 3, 32, 32, dtype=torch.uint8)
        made = plain(AnnotatedTracks())({"video": video, "key": keys(3), "boxes": boxes})
        weights = made["trajectory_weights"][:, 0]
        assert weights.tolist() == [[1, 1, 1, 0, 1], [0] * 5, [1] * 5]
        assert made["trajectories"].isfinite().all()

    def test_clips_without_boxes_are_refused(self):
        video = torch.zeros(1, 1, 4, 3, 32, 32, dtype=torch.uint8)
        with pytest.raises(ValueError, match="batch has no 'boxes': use GOT10kClips"):
            CatchThePatch(AnnotatedTracks())({"video": video, "key": keys(1)})
