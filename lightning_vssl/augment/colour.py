"""Operations on the pixels of clips, each with explicit parameters, one value per clip.

Clips are float (N, 3, T, H, W), or (N, 3, H, W) for images, RGB in [0, 1]; every function returns
new clips and keeps the range, to float rounding. A parameter is (N,), or (N, T) where frames may
differ. What is random is drawn elsewhere (`lightning_vssl.augment.views`).

The formulas are torchvision's and kornia's (both are checked against in the tests), BYOL's and the
released CtP's, written without boolean masks and without gathers, which are what makes the
libraries' versions slow; `benchmarks/augment.py` has the figures.
"""

from collections.abc import Callable
from typing import Literal

import torch
from kornia.filters import get_gaussian_kernel1d
from torch import Tensor

# ITU-R 601 luma to the four digits of torchvision and BYOL.
_LUMA = (0.2989, 0.5870, 0.1140)
# Hue on OpenCV's 8-bit scale: half degrees of the colour circle, 0 to 179.
_OPENCV_TURN = 180.0
_OPENCV_LAST = 179.0


def _spread(value: Tensor, clips: Tensor) -> Tensor:
    """Shapes (N,) or (N, T) so that it broadcasts over (N, 3, T, H, W) or (N, 3, H, W)."""
    value = value.to(clips)
    if value.dim() == 2:
        return value[:, None, :, None, None]
    return value.view(-1, *(1,) * (clips.dim() - 1))


def to_unit(video: Tensor) -> Tensor:
    """Turns uint8 clips (N, T, 3, H, W) into float clips (N, 3, T, H, W) in [0, 1]."""
    clips = torch.empty_like(
        video.transpose(1, 2), dtype=torch.float32, memory_format=torch.contiguous_format
    )
    return clips.copy_(video.transpose(1, 2)).div_(255)


def luma(clips: Tensor) -> Tensor:
    """Weighs the channels into grey, (N, 1, ...)."""
    red, green, blue = torch.split(clips, 1, dim=1)
    grey = (red * _LUMA[0]).add_(green, alpha=_LUMA[1])
    return grey.add_(blue, alpha=_LUMA[2])


def greyscale(clips: Tensor) -> Tensor:
    """Replaces every channel by the luma."""
    return luma(clips).expand_as(clips).contiguous()


def scale_brightness(clips: Tensor, factor: Tensor) -> Tensor:
    """Multiplies and clamps: torchvision's brightness, and CtP's contrast (about black).

    Args:
        clips: Clips in [0, 1].
        factor: 0 or more, (N,) or (N, T).
    """
    return (clips * _spread(factor, clips)).clamp_(0, 1)


def shift_brightness(clips: Tensor, delta: Tensor) -> Tensor:
    """Adds and clamps: BYOL's brightness, and CtP's (whose grey levels are to be divided by 255).

    Args:
        clips: Clips in [0, 1].
        delta: What is added, (N,) or (N, T), in units of the full range.
    """
    return (clips + _spread(delta, clips)).clamp_(0, 1)


def _scale_about(clips: Tensor, centre: Tensor, factor: Tensor) -> Tensor:
    factor = _spread(factor, clips)
    return (clips * factor).add_(centre * (1 - factor)).clamp_(0, 1)


def contrast_about_grey(clips: Tensor, factor: Tensor) -> Tensor:
    """Scales each frame about the mean of its luma: torchvision's contrast.

    Args:
        clips: Clips in [0, 1].
        factor: 0 (flat grey) or more, (N,).
    """
    return _scale_about(clips, luma(clips.mean((-2, -1), keepdim=True)), factor)


def contrast_about_channel(clips: Tensor, factor: Tensor) -> Tensor:
    """Scales each channel of each frame about its own mean: BYOL's contrast.

    Args:
        clips: Clips in [0, 1].
        factor: 0 (one flat colour) or more, (N,).
    """
    return _scale_about(clips, clips.mean((-2, -1), keepdim=True), factor)


def saturation_to_grey(clips: Tensor, factor: Tensor) -> Tensor:
    """Moves pixels away from their luma: torchvision's saturation.

    Args:
        clips: Clips in [0, 1].
        factor: 0 (grey) or more, (N,).
    """
    return _scale_about(clips, luma(clips), factor)


def _extremes(clips: Tensor) -> tuple[Tensor, Tensor]:
    """The largest and the smallest channel of each pixel, (N, 1, ...) each."""
    red, green, blue = torch.split(clips, 1, dim=1)
    high = torch.maximum(red, green)
    low = torch.minimum(red, green)
    return torch.maximum(high, blue, out=high), torch.minimum(low, blue, out=low)


def saturation_hsv(clips: Tensor, factor: Tensor) -> Tensor:
    """Multiplies the S of HSV, at most to 1: BYOL's saturation.

    Args:
        clips: Clips in [0, 1].
        factor: 0 (each pixel takes its largest channel) or more, (N,).
    """
    high, low = _extremes(clips)
    # S' = min(S * factor, 1) scales the distances to the largest channel by S' / S.
    spread = (high - low).clamp_(min=1e-12)
    scale = torch.minimum(_spread(factor, clips), high / spread)
    return torch.addcmul(high, high - clips, scale, value=-1)


def _hue_turns(clips: Tensor, high: Tensor, spread: Tensor) -> Tensor:
    """The hue in turns, (N, 1, ...), in [-1/6, 5/6]; 0 for grey pixels."""
    red, green, blue = torch.split(clips, 1, dim=1)
    is_green = torch.eq(high, green, out=torch.empty_like(high))
    is_red = torch.eq(high, red, out=torch.empty_like(high))
    hue = torch.lerp(
        (red - green).add_(spread, alpha=4), (blue - red).add_(spread, alpha=2), is_green
    )
    return hue.lerp_(green - blue, is_red).div_((spread * 6).clamp_(min=1e-12))


def _from_hue(turns: Tensor, low: Tensor, spread: Tensor, clips: Tensor) -> Tensor:
    """Rebuilds RGB from hue (turns, not negative), smallest channel and spread."""
    result = torch.empty_like(clips)
    for channel, offset in enumerate((0, 4, 2)):
        # A tent over the colour circle: 1 within 1/6 turn of the primary, 0 beyond 1/3.
        share = (turns + offset / 6).frac_().mul_(6).sub_(3).abs_().sub_(1).clamp_(0, 1)
        torch.addcmul(low, share, spread, out=result[:, channel : channel + 1])
    return result


def rotate_hue(clips: Tensor, turns: Tensor) -> Tensor:
    """Turns the hue around the colour circle: torchvision's and BYOL's hue.

    Args:
        clips: Clips in [0, 1].
        turns: Part of a full turn, in [-0.5, 0.5], (N,).
    """
    high, low = _extremes(clips)
    spread = high - low
    hue = _hue_turns(clips, high, spread).add_(_spread(turns, clips) + 1)
    return _from_hue(hue, low, spread, clips)


def shift_hue_saturation(clips: Tensor, hue: Tensor, saturation: Tensor) -> Tensor:
    """Adds to the hue, multiplies the saturation: CtP's, on OpenCV's scales.

    As in the released code the hue stops at the ends of its scale (0 and 179) instead of running
    on around the circle. The rounding of its 8-bit conversion is left out.

    Args:
        clips: Clips in [0, 1].
        hue: What is added, in half degrees, (N,).
        saturation: Factor of the S of HSV, which is capped at 1, (N,).
    """
    high, low = _extremes(clips)
    spread = high - low
    turns = _hue_turns(clips, high, spread).add_(1).frac_()
    turns = turns.add_(_spread(hue, clips) / _OPENCV_TURN).clamp_(0, _OPENCV_LAST / _OPENCV_TURN)
    spread = torch.minimum(spread.mul_(_spread(saturation, clips)), high)
    return _from_hue(turns, high - spread, spread, clips)


def solarise(clips: Tensor, threshold: float = 0.5) -> Tensor:
    """Inverts the values at or above ``threshold``: torchvision's and BYOL's solarisation."""
    above = torch.ge(clips, threshold, out=torch.empty_like(clips))
    return torch.lerp(clips, 1 - clips, above)


Border = Literal["reflect", "zero"]


def _blur_matrix(weights: Tensor, size: int, border: Border) -> Tensor:
    """The blur of one axis as matrices (N, size, size).

    Args:
        weights: The right half of the kernel from its centre on, with a 0 after it, (N, r + 2).
        size: Length of the axis; with ``reflect`` more than r.
        border: What the kernel finds beyond the borders.
    """
    last = weights.shape[1] - 1
    at = torch.arange(size, device=weights.device)
    total = at[:, None] + at
    matrix = weights[:, (at[:, None] - at).abs().clamp(max=last)]
    if border == "zero":
        return matrix
    # What the kernel finds beyond a border lies mirrored inside, the border itself excepted.
    before = weights[:, total.clamp(max=last)] * (at > 0)
    after = weights[:, (2 * (size - 1) - total).clamp(max=last)] * (at < size - 1)
    return matrix + before + after


def gaussian_blur(
    clips: Tensor, sigma: Tensor, kernel: int = 23, border: Border = "reflect"
) -> Tensor:
    """Blurs with a Gaussian: torchvision's and kornia's blur, or BYOL's.

    Two matrix products per clip. Where TF32 is allowed they are exact to 5e-4.

    Args:
        clips: Clips in [0, 1].
        sigma: Standard deviation in pixels, above 0, (N,).
        kernel: Taps of the kernel, odd.
        border: What lies beyond the borders: the picture ``reflect``-ed (torchvision, kornia), or
            ``zero``, black, which darkens the rim (BYOL).

    Raises:
        ValueError: If the kernel is even, or, reflected, reaches over the whole frame.
    """
    height, width = clips.shape[-2:]
    radius = kernel // 2
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"kernel must be odd and positive, got {kernel}")
    if border == "reflect" and radius >= min(height, width):
        raise ValueError(
            f"kernel={kernel} reaches over a whole frame of {height} x {width}; it must be at "
            f"most {2 * min(height, width) - 1}"
        )
    with torch.autocast(clips.device.type, enabled=False):
        taps = get_gaussian_kernel1d(kernel, sigma.to(clips)[:, None])  # (N, kernel)
        half = torch.nn.functional.pad(taps[:, radius:], (0, 1))  # (N, radius + 2)
        across = _blur_matrix(half, width, border).mT  # (N, W, W)
        down = _blur_matrix(half, height, border)  # (N, H, H)
        rows = torch.bmm(clips.reshape(len(clips), -1, width), across)  # (N, 3 * T * H, W)
        rows = rows.view(len(clips), -1, height, width)
        return torch.matmul(down[:, None], rows).view(clips.shape)


def normalise(clips: Tensor, mean: Tensor, std: Tensor, out: Tensor) -> Tensor:
    """Subtracts ``mean`` (3,) and divides by ``std`` (3,), into ``out``."""
    torch.sub(clips, mean.view(3, 1, 1, 1), out=out)
    return out.div_(std.view(3, 1, 1, 1))


def on_chosen(
    clips: Tensor,
    chosen: list[bool],
    operation: Callable[..., Tensor],
    *parameters: Tensor,
) -> Tensor:
    """Applies an operation to some of the clips.

    Args:
        clips: Clips, (N, ...); may be changed in place.
        chosen: Which clips, N.
        operation: Takes clips and their parameters, returns clips.
        parameters: Parameters of every clip, (N, ...) each.

    Returns:
        All clips; those not chosen are as they were, whatever their parameters.
    """
    if not any(chosen):
        return clips
    if all(chosen):
        return operation(clips, *parameters)
    at = torch.tensor([i for i, picked in enumerate(chosen) if picked], device=clips.device)
    clips[at] = operation(clips[at], *(parameter[at] for parameter in parameters))
    return clips


Semantics = Literal["torchvision", "byol"]

# What brightness, contrast, saturation and hue mean; the order is that of `jitter`'s parameters.
_JITTERS: dict[Semantics, tuple[Callable[[Tensor, Tensor], Tensor], ...]] = {
    "torchvision": (scale_brightness, contrast_about_grey, saturation_to_grey, rotate_hue),
    "byol": (shift_brightness, contrast_about_channel, saturation_hsv, rotate_hue),
}


def jitter(
    clips: Tensor,
    chosen: list[bool],
    order: list[list[int]],
    values: Tensor,
    semantics: Semantics = "torchvision",
) -> Tensor:
    """Jitters the colours of some clips, each in its own order.

    Args:
        clips: Clips in [0, 1], (N, 3, T, H, W); may be changed in place.
        chosen: Which clips, N.
        order: For each clip the order of brightness 0, contrast 1, saturation 2 and hue 3; N x 4.
        values: Factor or shift of brightness, contrast, saturation and hue, (N, 4).
        semantics: ``torchvision``: everything but the hue is a factor, contrast is about the mean
            luma of a frame, saturation about a pixel's luma. ``byol``: brightness is added,
            contrast is about the mean of each channel, saturation is that of HSV.
    """
    for place in range(4):
        for index, operation in enumerate(_JITTERS[semantics]):
            now = [
                picked and turn[place] == index for picked, turn in zip(chosen, order, strict=True)
            ]
            clips = on_chosen(clips, now, operation, values[:, index])
    return clips
