"""Each operation against its definition: torchvision, kornia, or a float64 formula."""

import colorsys
import math

import kornia
import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from lightning_vssl.augment import colour

FACTORS = torch.tensor([0.3, 1.0, 1.7])


def _clips(count=3, frames=2, height=13, width=17, seed=0):
    """Random clips (N, 3, T, H, W), with grey, black, white and saturated pixels among them."""
    generator = torch.Generator().manual_seed(seed)
    clips = torch.rand(count, 3, frames, height, width, generator=generator)
    corners = torch.tensor([[r, g, b] for r in (0, 1) for g in (0, 1) for b in (0, 1)])
    clips[..., 0, :8] = corners.T.float()[:, None]
    clips[..., 1, :8] = torch.linspace(0, 1, 8)
    clips[..., 2, :8] = torch.tensor([0.8, 0.2, 0.8])[:, None, None]  # two largest channels
    return clips


def _frames(clip):
    """(3, T, H, W) -> (T, 3, H, W), what torchvision and kornia take."""
    return clip.transpose(0, 1)


def _close(ours, reference, tolerance=1e-4):
    assert ours.shape == reference.shape
    assert (ours.double() - reference.double()).abs().max() < tolerance


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (colour.scale_brightness, functional.adjust_brightness),
        (colour.contrast_about_grey, functional.adjust_contrast),
        (colour.saturation_to_grey, functional.adjust_saturation),
    ],
)
def test_factors_equal_torchvision(ours, theirs):
    clips = _clips()
    result = ours(clips, FACTORS)
    for clip, out, factor in zip(clips, result, FACTORS.tolist(), strict=True):
        _close(_frames(out), theirs(_frames(clip), factor), 2e-6)


def test_hue_equals_torchvision():
    clips = _clips(7)
    turns = torch.tensor([-0.5, -0.21, -1e-4, 0.0, 0.1, 1 / 3, 0.5])
    result = colour.rotate_hue(clips, turns)
    for clip, out, turn in zip(clips, result, turns.tolist(), strict=True):
        _close(_frames(out), functional.adjust_hue(_frames(clip), turn), 1e-5)


def test_greyscale_blur_and_solarisation_equal_torchvision():
    clips = _clips(height=25, width=31)
    sigma = torch.tensor([0.1, 0.9, 2.0])
    grey = colour.greyscale(clips)
    blurred = colour.gaussian_blur(clips, sigma, 23)
    solar = colour.solarise(clips, 0.4)
    for i, clip in enumerate(clips):
        frames = _frames(clip)
        _close(_frames(grey[i]), functional.rgb_to_grayscale(frames, 3), 1e-6)
        expected = functional.gaussian_blur(frames, [23, 23], [float(sigma[i])] * 2)
        _close(_frames(blurred[i]), expected, 2e-6)
        assert torch.equal(_frames(solar[i]), functional.solarize(frames, 0.4))


def test_the_same_equal_kornia():
    clips = _clips(height=25, width=31)
    enhance, sigma = kornia.enhance, torch.tensor([0.1, 0.9, 2.0])
    pairs = [
        (colour.scale_brightness(clips, FACTORS), enhance.adjust_brightness_accumulative),
        (colour.contrast_about_grey(clips, FACTORS), enhance.adjust_contrast_with_mean_subtraction),
        (
            colour.saturation_to_grey(clips, FACTORS),
            enhance.adjust_saturation_with_gray_subtraction,
        ),
    ]
    for result, theirs in pairs:
        for i in range(3):
            _close(_frames(result[i]), theirs(_frames(clips[i]), float(FACTORS[i])))
    hue = colour.rotate_hue(clips, torch.tensor([-0.3, 0.1, 0.5]))
    blurred = colour.gaussian_blur(clips, sigma, 23)
    for i, turn in enumerate((-0.3, 0.1, 0.5)):
        _close(_frames(hue[i]), enhance.adjust_hue(_frames(clips[i]), turn * 2 * math.pi))
        pair = sigma[i].expand(2, 2)
        _close(
            _frames(blurred[i]), kornia.filters.gaussian_blur2d(_frames(clips[i]), (23, 23), pair)
        )


def test_blur_reflects_at_the_borders_as_the_slow_sum_does():
    row = torch.rand(1, 1, 1, 1, 9, generator=torch.Generator().manual_seed(3)).double()
    clip = row.expand(1, 3, 1, 9, 9).contiguous()
    weights = np.exp(-(np.arange(-8, 9) ** 2) / (2 * 1.5**2))
    padded = np.pad(row.numpy().ravel(), 8, mode="reflect")
    expected = [(padded[i : i + 17] * weights).sum() / weights.sum() for i in range(9)]
    result = colour.gaussian_blur(clip, torch.tensor([1.5]).double(), 17)
    assert result[0, 0, 0, 4].tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kernel", [5, 23, 31])
def test_byol_blur_finds_black_beyond_the_borders(kernel):
    clips = _clips(2, frames=1, height=25, width=31)[:, :, 0]
    sigma = [0.3, 2.0]
    result = colour.gaussian_blur(clips, torch.tensor(sigma), kernel, "zero")
    at = torch.arange(-(kernel // 2), kernel // 2 + 1).double()
    for i in range(2):
        taps = torch.exp(-(at**2) / (2 * sigma[i] ** 2))
        taps = taps / taps.sum()
        frame = clips[i].double()[:, None]  # (3, 1, H, W)
        for shape in ((1, 1, 1, -1), (1, 1, -1, 1)):
            frame = torch.nn.functional.conv2d(frame, taps.view(shape), padding="same")
        _close(result[i], frame[:, 0], 1e-6)


@pytest.mark.parametrize("kernel", [0, 4, 27])
def test_blur_refuses_a_kernel_that_does_not_fit(kernel):
    with pytest.raises(ValueError, match="kernel"):
        colour.gaussian_blur(_clips(), torch.ones(3), kernel)


def test_byol_brightness_and_contrast_equal_their_formulas():
    clips = _clips()
    x = clips.double()
    delta = torch.tensor([-0.4, 0.0, 0.4])
    expected = (x + delta.double().view(3, 1, 1, 1, 1)).clamp(0, 1)
    _close(colour.shift_brightness(clips, delta), expected, 1e-6)
    mean = x.mean((3, 4), keepdim=True)  # of each channel of each frame
    expected = (FACTORS.double().view(3, 1, 1, 1, 1) * (x - mean) + mean).clamp(0, 1)
    _close(colour.contrast_about_channel(clips, FACTORS), expected, 1e-6)


def _per_pixel(clips, change):
    """Applies change(i, h, s, v) -> (h, s, v) to every pixel in float64 through colorsys."""
    out = np.empty(clips.shape)
    for i, clip in enumerate(clips.double().numpy()):
        pixels = clip.reshape(3, -1).T
        changed = [colorsys.hsv_to_rgb(*change(i, *colorsys.rgb_to_hsv(*p))) for p in pixels]
        out[i] = np.array(changed).T.reshape(clip.shape)
    return torch.from_numpy(out)


def test_byol_saturation_equals_its_formula():
    clips = _clips()
    factors = FACTORS.tolist()
    expected = _per_pixel(clips, lambda i, h, s, v: (h, min(s * factors[i], 1.0), v))
    _close(colour.saturation_hsv(clips, FACTORS), expected, 2e-6)


def test_byol_hue_equals_its_formula():
    clips = _clips()
    turns = [-0.1, 0.04, 0.1]
    expected = _per_pixel(clips, lambda i, h, s, v: ((h + turns[i]) % 1.0, s, v))
    _close(colour.rotate_hue(clips, torch.tensor(turns)), expected, 1e-5)


def test_ctp_hue_stops_at_the_ends_of_opencvs_scale():
    clips = _clips()
    shifts, factors = [-12.0, 5.0, 12.0], [0.9, 1.0, 1.1]

    def change(i, h, s, v):
        hue = min(max(h * 180 + shifts[i], 0.0), 179.0)
        return hue / 180, min(s * factors[i], 1.0), v

    result = colour.shift_hue_saturation(clips, torch.tensor(shifts), torch.tensor(factors))
    _close(result, _per_pixel(clips, change), 1e-5)


def test_ctp_hue_equals_opencv_up_to_its_rounding():
    cv2 = pytest.importorskip("cv2")
    clips = (_clips(1) * 255).round() / 255
    image = (clips[0, :, 0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(np.float32)
    hsv[..., 0] = np.clip(np.round(hsv[..., 0] + 8), 0, 179)
    hsv[..., 1] = np.clip(np.round(hsv[..., 1] * 1.08), 0, 255)
    expected = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)
    result = colour.shift_hue_saturation(clips, torch.tensor([8.0]), torch.tensor([1.08]))
    difference = result[0, :, 0].permute(1, 2, 0) * 255 - torch.from_numpy(expected).float()
    # One step of OpenCV's 8-bit hue is up to 255 / 30 grey levels; half of it is rounding.
    assert difference.abs().max() < 6.5
    assert difference.abs().mean() < 1.5


def test_parameters_may_differ_from_frame_to_frame():
    clips = _clips(2, frames=3)
    delta = torch.tensor([[0.1, -0.2, 0.0], [0.3, 0.0, -0.1]])
    shifted = colour.shift_brightness(clips, delta)
    scaled = colour.scale_brightness(clips, 1 + delta)
    for i in range(2):
        for t in range(3):
            frame = clips[i, :, t].double()
            _close(shifted[i, :, t], (frame + float(delta[i, t])).clamp(0, 1), 1e-6)
            _close(scaled[i, :, t], (frame * (1 + float(delta[i, t]))).clamp(0, 1), 1e-6)


def test_images_are_clips_without_time():
    clips = _clips(3, frames=1)
    for operation in (colour.contrast_about_grey, colour.rotate_hue, colour.scale_brightness):
        image = operation(clips[:, :, 0], FACTORS / 4)
        assert torch.equal(image, operation(clips, FACTORS / 4)[:, :, 0])
    assert colour.gaussian_blur(clips[:, :, 0], FACTORS, 5).shape == (3, 3, 13, 17)


def test_operations_leave_their_input_alone():
    clips = _clips()
    before = clips.clone()
    colour.shift_hue_saturation(clips, FACTORS, FACTORS)
    colour.rotate_hue(clips, FACTORS / 4)
    for operation in (
        colour.scale_brightness,
        colour.shift_brightness,
        colour.contrast_about_grey,
        colour.contrast_about_channel,
        colour.saturation_to_grey,
        colour.saturation_hsv,
        lambda x, f: colour.gaussian_blur(x, f, 5),
        lambda x, _: colour.greyscale(x),
        lambda x, _: colour.solarise(x),
    ):
        result = operation(clips, FACTORS)
        assert torch.equal(clips, before)
        assert result.min() >= -1e-6
        assert result.max() <= 1 + 1e-6


@pytest.mark.parametrize("semantics", ["torchvision", "byol"])
def test_every_clip_is_jittered_in_its_own_order(semantics):
    clips = _clips(5)
    chosen = [True, True, False, True, True]
    order = [[0, 1, 2, 3], [3, 2, 1, 0], [0, 1, 2, 3], [2, 0, 3, 1], [0, 1, 2, 3]]
    brightness = 0.3 if semantics == "byol" else 1.3
    values = torch.tensor([[brightness, 0.6, 1.4, 0.08]]).repeat(5, 1)
    values[4, 0] -= 0.5
    names = {
        "torchvision": ("scale_brightness", "contrast_about_grey", "saturation_to_grey"),
        "byol": ("shift_brightness", "contrast_about_channel", "saturation_hsv"),
    }[semantics]
    operations = [getattr(colour, name) for name in (*names, "rotate_hue")]
    result = colour.jitter(clips.clone(), chosen, order, values, semantics)
    for i in range(5):
        expected = clips[i : i + 1].double()
        for index in order[i] if chosen[i] else []:
            expected = operations[index](expected, values[i : i + 1, index].double())
        _close(result[i : i + 1], expected, 1e-5)
    assert not torch.allclose(result[0] - clips[0], result[1] - clips[1], atol=1e-2)


def test_uint8_becomes_zero_to_one():
    video = torch.arange(256, dtype=torch.uint8).view(1, 1, 1, 16, 16).expand(1, 2, 3, 16, 16)
    clips = colour.to_unit(video)
    assert clips.shape == (1, 3, 2, 16, 16)
    assert clips.is_contiguous()
    expected = functional.to_dtype(video.transpose(1, 2), torch.float32, scale=True)
    _close(clips, expected, 1e-7)
