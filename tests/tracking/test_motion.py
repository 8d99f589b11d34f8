"""The camera's motion against the map that made it; what moves by itself stands out."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from lightning_vssl.data.synthetic_scenes import draw
from lightning_vssl.tracking import MotionSaliency, Tracker
from lightning_vssl.tracking.motion import _mean, camera_motion, spectral_residual


def ground(height=160, width=200, seed=0):
    """A smooth random texture, (height, width, 3) in [0, 255]."""
    noise = np.random.default_rng(seed).normal(size=(height, width, 3))
    smooth = ndimage.gaussian_filter(noise, (3, 3, 0), mode="wrap")
    return 128 + 60 * smooth / smooth.std()


def panned(count=16, speed=(1.0, 0.5), disc=None, colour=(230, 60, 40)):
    """Frames of a camera that pans over a ground, and a disc's mask: where it is in each."""
    wide = ground()
    y, x = np.mgrid[:64, :80]
    frames, masks = [], []
    for t in range(count):
        shift = (40 + speed[1] * t, 40 + speed[0] * t)
        frame = np.stack(
            [
                ndimage.map_coordinates(wide[..., c], [y + shift[0], x + shift[1]], order=1)
                for c in range(3)
            ],
            axis=-1,
        )
        mask = np.zeros((64, 80), bool)
        if disc is not None:
            cx, cy = disc(t)
            mask = np.hypot(y - cy, x - cx) < 10
            own = 0.6 * np.array(colour) + 0.4 * ground(64, 80, seed=1)
            own = np.roll(own, (round(cy), round(cx)), (0, 1))
            frame[mask] = own[mask]
        frames.append(frame)
        masks.append(mask)
    pixels = torch.from_numpy(np.clip(frames, 0, 255).astype(np.uint8)).permute(0, 3, 1, 2)
    return pixels.contiguous(), np.stack(masks)


@pytest.mark.parametrize("lag", [1, 3])
def test_camera_motion_finds_the_map_that_made_the_pictures(lag):
    # Frame t + 1 shows what frame t shows, turned, grown and moved, always by the same map.
    y, x = np.mgrid[:64, :80].astype(float)
    wide = ground()[..., 0] / 255
    turn, grow, move = 0.01, 1.01, np.array([0.6, -0.4])
    linear = grow * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    pictures = []
    for t in range(6):
        middle = np.stack([x - 39.5, y - 31.5]).reshape(2, -1)
        for _ in range(t):  # a place of frame t is found at linear @ place + move in frame t + 1
            middle = np.linalg.inv(linear) @ (middle - move[:, None])
        pictures.append(
            ndimage.map_coordinates(wide, [middle[1] + 80, middle[0] + 100], order=3).reshape(
                64, 80
            )
        )
    forth, back = camera_motion(torch.tensor(np.array(pictures), dtype=torch.float32), lag)
    assert forth.shape == back.shape == (6 - lag, 2, 3)
    sides = np.array([40.0, 32.0])  # pixels of the coordinates' unit
    true_linear, true_move = np.eye(2), np.zeros(2)
    for _ in range(lag):
        true_linear, true_move = linear @ true_linear, linear @ true_move + move
    for found in forth.numpy():
        pixels = sides[:, None] * found[:, :2] / sides
        np.testing.assert_allclose(pixels, true_linear, atol=0.004 * lag)
        np.testing.assert_allclose(sides * found[:, 2], true_move, atol=0.1 * lag)
    both = torch.cat([forth, forth.new_tensor([[[0, 0, 1]]]).expand(len(forth), 1, 3)], 1)
    torch.testing.assert_close(
        back @ both, torch.eye(2, 3).expand(len(forth), 2, 3), atol=1e-5, rtol=0
    )


def test_an_object_does_not_turn_the_camera():
    # A disc of a tenth of the frame runs against the pan.
    frames, _ = panned(speed=(1.0, 0.5), disc=lambda t: (60 - 2 * t, 32))
    forth, _ = camera_motion(frames.float().mean(1) / 255)
    moved = forth[:, :, 2] * torch.tensor([40.0, 32.0])
    torch.testing.assert_close(moved, torch.tensor([[-1.0, -0.5]]).expand(15, 2), atol=0.15, rtol=0)


@pytest.mark.parametrize("speed", [(0.0, 0.0), (1.0, 0.5)])
def test_what_moves_by_itself_is_found(speed):
    frames, masks = panned(speed=speed, disc=lambda t: (18 + 2.5 * t, 30))
    maps = MotionSaliency()(frames)
    assert maps.shape == (16, 64, 80)
    assert maps.dtype == torch.float32
    assert 0 <= maps.min() <= maps.max() <= 1
    tracked = Tracker(MotionSaliency())(frames)
    own = tracked.masks.numpy()
    overlap = (own & masks).sum((1, 2)) / (own | masks).sum((1, 2))
    assert overlap[2:-2].mean() > 0.6


def test_a_pan_alone_is_no_object():
    frames, _ = panned(speed=(1.0, 0.5))
    assert Tracker(MotionSaliency(contrast=0.0))(frames).found.float().mean() < 0.2


def test_without_motion_contrast_speaks():
    frames, masks = panned(speed=(0.0, 0.0), disc=lambda t: (44, 30), colour=(255, 40, 40))
    tracked = Tracker(MotionSaliency(contrast=1.0))(frames)
    own = tracked.masks.numpy()
    overlap = (own & masks).sum((1, 2)) / np.maximum((own | masks).sum((1, 2)), 1)
    assert overlap.mean() > 0.5


def test_built_in_videos_beat_a_centred_box_and_the_first_mask():
    found, centred, held = [], [], []
    for index in range(6):
        drawn = draw(3, index, "train", borders="bounce")
        true = drawn.masks == 1
        frames = torch.from_numpy(drawn.frames).permute(0, 3, 1, 2)
        own = Tracker(MotionSaliency())(frames).masks.numpy()
        box = np.zeros_like(true)
        height, width = true.shape[1:]
        box[:, height // 3 : -(height // 3), width // 3 : -(width // 3)] = True
        for masks, values in ((own, found), (box, centred), (own[:1].repeat(len(own), 0), held)):
            either = np.maximum((masks | true).sum((1, 2)), 1)
            values.append(((masks & true).sum((1, 2)) / either).mean())
    assert np.mean(found) > np.mean(centred) + 0.2
    assert np.mean(found) > np.mean(held) + 0.1


def test_spectral_residual_by_its_definition():
    # One picture in float64 with NumPy: the local mean of nine is SciPy's.
    grey = np.random.default_rng(0).random((20, 24))
    grey[8:12, 10:15] += 2
    spectrum = np.fft.fft2(grey)
    size = np.log(np.abs(spectrum) + 1e-8)
    residual = size - ndimage.uniform_filter(size, 3, mode="nearest")
    found = np.abs(np.fft.ifft2(np.exp(residual + 1j * np.angle(spectrum)))) ** 2
    found = ndimage.gaussian_filter(found, 2.5, mode="nearest")
    got = spectral_residual(torch.from_numpy(np.stack([grey, grey * 0.5])))
    np.testing.assert_allclose(got[0].numpy(), found / found.mean(), rtol=1e-6)
    torch.testing.assert_close(got[1], got[0], rtol=1e-4, atol=1e-6)  # whatever the light


def test_mean_of_nine_is_scipys():
    pictures = torch.rand(3, 7, 9, dtype=torch.float64)
    wanted = ndimage.uniform_filter(pictures.numpy(), (1, 3, 3), mode="nearest")
    torch.testing.assert_close(_mean(pictures), torch.from_numpy(wanted))


@pytest.mark.parametrize(
    "wrong",
    [
        {"lag": 0},
        {"steady": -1},
        {"still": 0.0},
        {"contrast": 1.5},
        {"centre": -0.1},
        {"short_side": 8},
    ],
)
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MotionSaliency(**wrong)
