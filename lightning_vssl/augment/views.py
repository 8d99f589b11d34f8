"""Views of a batch: from uint8 clips to normalised floats, on the device the clips are on.

A view's parameters are drawn per clip, not per frame, from the sample's key alone: they are the
same whatever the rest of the batch, the device, the number of workers or of ranks. They are
returned, and `replay` makes the same pixels from them again.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lightning_vssl.augment.colour import (
    Border,
    Semantics,
    gaussian_blur,
    greyscale,
    jitter,
    normalise,
    on_chosen,
    scale_brightness,
    shift_brightness,
    shift_hue_saturation,
    solarise,
    to_unit,
)
from lightning_vssl.data.windows import sources
from lightning_vssl.nn.keyed import uniform

Parameters = dict[str, Tensor]
Colour = tuple[float, float, float]

IMAGENET_MEAN: Colour = (0.485, 0.456, 0.406)
IMAGENET_STD: Colour = (0.229, 0.224, 0.225)

# Streams of the keyed generator; each kind of draw has its own.
_FLIP, _JITTER, _ORDER, _GREY = 0, 1, 2, 3
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = 4, 5, 6, 7
_BLUR, _SIGMA, _SOLARISE = 8, 9, 10
_BRIGHTNESS_COIN, _CONTRAST_COIN, _HUE_COIN = 11, 12, 13
_NEXT_VIEW = 0x5851F42D4C957F2D


def _check_video(video: Tensor) -> None:
    if video.dtype != torch.uint8 or video.dim() != 6 or video.shape[3] != 3:
        raise ValueError(
            "batch['video'] must be uint8 of shape (B, V, T, 3, H, W), got "
            f"{video.dtype} of shape {tuple(video.shape)}"
        )


def _check_probability(name: str, value: float | Sequence[float]) -> None:
    values = value if isinstance(value, Sequence) else (value,)
    if not values or not all(0 <= v <= 1 for v in values):
        raise ValueError(f"{name} must be a probability in [0, 1], or one per view, got {value}")


def view_keys(key: Tensor, views: int) -> Tensor:
    """Gives every view a key: view 0 has the sample's own.

    Args:
        key: Keys of the samples, (B,) int64.
        views: Views V per sample.

    Returns:
        (B * V,) int64, the views of a sample one after the other.
    """
    offsets = torch.arange(views, device=key.device) * _NEXT_VIEW
    return (key[:, None] ^ offsets).flatten()


def share_draws(drawn: Tensor, shared: tuple[int, ...] | None) -> Tensor:
    """Gives each view what was drawn for the view whose draws it takes.

    Args:
        drawn: (B, V, ...).
        shared: See `lightning_vssl.data.windows.sources`.

    Returns:
        (B, V, ...).

    Raises:
        ValueError: If ``shared`` does not fit V views.
    """
    if shared is None:
        return drawn
    return torch.stack([drawn[:, view] for view in sources(shared, drawn.shape[1])], dim=1)


def flip_boxes(boxes: Tensor, width: int) -> Tensor:
    """Mirrors boxes (..., 4), xyxy in pixels, in frames of ``width``; missing ones stay NaN."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([width - x2, y1, width - x1, y2], dim=-1)


class _Normalising(nn.Module):
    """Holds a mean and a standard deviation and knows the shape of views."""

    def __init__(self, mean: Colour, std: Colour) -> None:
        super().__init__()
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(
                "mean and std must be three numbers each, for RGB in [0, 1], and std above 0; got "
                f"mean={mean}, std={std}"
            )
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)
        self.mean: Tensor
        self.std: Tensor


@runtime_checkable
class Normalising(Protocol):
    """Views that end with the mean and the deviation of each channel, (3,)."""

    mean: Tensor
    std: Tensor


def check_pixels(augment: nn.Module | None, pixels: tuple[Colour, Colour]) -> None:
    """Refuses training clips that are normalised otherwise than the network wants its pixels.

    Args:
        augment: Makes the views of training; what does not normalise passes.
        pixels: Mean and standard deviation that the network wants.

    Raises:
        ValueError: If the mean or the deviation differs.
    """
    wanted = torch.tensor(pixels)  # (2, 3)
    for part in augment.modules() if augment is not None else ():
        if not isinstance(part, Normalising):
            continue
        if not torch.allclose(torch.stack([part.mean, part.std]).cpu(), wanted, atol=1e-6):
            mean, std = (list(row) for row in pixels)
            raise ValueError(
                f"augment normalises with mean {part.mean.tolist()} and std {part.std.tolist()}, "
                f"but the network takes mean {mean} and std {std}: give {type(part).__name__} "
                f"mean: {mean} and std: {std}, or the backbone these pixels"
            )


class Normalise(_Normalising):
    """The view without chance: a clip as it is, normalised.

    Args:
        mean: Mean of each channel, RGB in [0, 1].
        std: Standard deviation of each channel.
    """

    def __init__(self, mean: Colour = IMAGENET_MEAN, std: Colour = IMAGENET_STD) -> None:
        super().__init__(mean, std)

    @torch.no_grad()
    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Adds ``views`` (B, V, 3, T, H, W) float32 to a copy of the batch.

        Raises:
            ValueError: If ``video`` is not uint8 (B, V, T, 3, H, W).
        """
        video = batch["video"]
        _check_video(video)
        views = torch.empty_like(
            video.transpose(2, 3), dtype=torch.float32, memory_format=torch.contiguous_format
        )
        for out, clips in _parts(views, video):
            normalise(to_unit(clips), self.mean, self.std, out=out)
        return {**batch, "views": views}


def _parts(views: Tensor, video: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Pairs each part of the views with its part of the video, to be worked on at once.

    A part is one clip on a CPU, where it stays in the cache and the arithmetic of a clip cannot
    depend on its neighbours; elsewhere it is the whole batch, for few and large kernels.
    """
    size = 1 if views.device.type == "cpu" else views.shape[0] * views.shape[1]
    pairs = zip(
        torch.split(views.flatten(0, 1), size), torch.split(video.flatten(0, 1), size), strict=True
    )
    return list(pairs)


class _RandomViews(_Normalising, ABC):
    """Draws, remembers and applies; says nothing about which colours change."""

    def __init__(
        self, mean: Colour, std: Colour, flip: float, shared: tuple[int, ...] | None = None
    ) -> None:
        super().__init__(mean, std)
        _check_probability("flip", flip)
        if shared is not None:
            sources(shared, len(shared))
        self.flip = flip
        self.shared = shared

    @abstractmethod
    def _draw(self, keys: Tensor, views: int) -> Parameters:
        """Draws the parameters of clips from their keys (B * V,); (B * V, ...) each."""

    @abstractmethod
    def _colour(self, clips: Tensor, parameters: Parameters) -> Tensor:
        """Changes the colours of clips (N, 3, T, H, W) in [0, 1]; they may be changed in place."""

    def draw(self, key: Tensor, views: int) -> Parameters:
        """Draws the parameters of a batch.

        Args:
            key: Keys of the samples, (B,) int64.
            views: Views V per sample.

        Returns:
            The parameters by name, (B, V) or (B, V, 4) each; ``flip`` (bool) is always there.
        """
        keys = view_keys(key, views)
        drawn = {"flip": uniform(keys, 1, _FLIP)[:, 0] < self.flip, **self._draw(keys, views)}
        return {
            name: share_draws(value.view(-1, views, *value.shape[1:]), self.shared)
            for name, value in drawn.items()
        }

    @torch.no_grad()
    def replay(self, video: Tensor, parameters: Parameters) -> Tensor:
        """Makes the views that belong to drawn parameters.

        Args:
            video: Clips, (B, V, T, 3, H, W) uint8.
            parameters: What `draw` returned, or ``batch["views_params"]``.

        Returns:
            Views, (B, V, 3, T, H, W) float32, normalised.

        Raises:
            ValueError: If ``video`` is not uint8 (B, V, T, 3, H, W).
        """
        _check_video(video)
        views = torch.empty_like(
            video.transpose(2, 3), dtype=torch.float32, memory_format=torch.contiguous_format
        )
        start = 0
        flat = {name: value.flatten(0, 1) for name, value in parameters.items()}
        with torch.autocast(video.device.type, enabled=False):
            for out, clips in _parts(views, video):
                own = {name: value[start : start + len(clips)] for name, value in flat.items()}
                unit = to_unit(clips)
                unit = on_chosen(unit, own["flip"].tolist(), lambda chosen: chosen.flip(-1))
                normalise(self._colour(unit, own), self.mean, self.std, out=out)
                start += len(clips)
        return views

    @torch.no_grad()
    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor | Parameters]:
        """Makes the training views of a batch.

        Args:
            batch: Holds ``video`` (B, V, T, 3, H, W) uint8 and ``key`` (B,) int64; ``boxes``
                (B, V, T, N, 4) and ``mask`` (B, V, T, h, w) if there are any.

        Returns:
            A copy of the batch with ``views`` (B, V, 3, T, H, W) float32, with what was drawn in
            ``views_params``, and with ``boxes`` and ``mask`` as they lie in the views; ``video``
            stays as it was.

        Raises:
            ValueError: If ``video`` is not uint8 (B, V, T, 3, H, W).
        """
        video = batch["video"]
        _check_video(video)
        parameters = self.draw(batch["key"], video.shape[1])
        result: dict[str, Tensor | Parameters] = {**batch}
        result["views"] = self.replay(video, parameters)
        result["views_params"] = parameters
        flipped = parameters["flip"][:, :, None, None, None]  # (B, V, 1, 1, 1)
        if "boxes" in batch:
            mirrored = flip_boxes(batch["boxes"], video.shape[-1])
            result["boxes"] = torch.where(flipped, mirrored, batch["boxes"])
        if "mask" in batch:
            result["mask"] = torch.where(flipped, batch["mask"].flip(-1), batch["mask"])
        return result


def _coin(keys: Tensor, stream: int, probability: float | Sequence[float], views: int) -> Tensor:
    """Draws (B * V,) bool, true with a probability that may differ from view to view."""
    chances = tuple(probability) if isinstance(probability, Sequence) else (probability,) * views
    if len(chances) != views:
        raise ValueError(
            f"one probability per view is needed: got {len(chances)} ({probability}) for "
            f"{views} views; give {views} numbers, or one for all views"
        )
    limits = torch.tensor(chances, device=keys.device).repeat(len(keys) // views)
    return uniform(keys, 1, stream)[:, 0] < limits


def _between(keys: Tensor, stream: int, low: float, high: float) -> Tensor:
    """Draws (B * V,) numbers evenly from [low, high)."""
    return low + (high - low) * uniform(keys, 1, stream)[:, 0]


class VideoViews(_RandomViews):
    """Flip, colour jitter, grey, blur and solarisation, the same over the frames of a clip.

    The defaults are MoCo v2's. A probability is one number, or one per view where a paper treats
    its views differently: CVRL, BYOL and VITO blur with ``(1.0, 0.1)`` and solarise with
    ``(0.0, 0.2)``. The order is the papers': flip, jitter, grey, blur, solarise, normalise.

    Args:
        mean: Mean of each channel, RGB in [0, 1].
        std: Standard deviation of each channel.
        flip: Probability of a horizontal flip.
        jitter: Probability of the colour jitter, whose four parts come in an order of their own in
            every clip.
        brightness: Factor within 1 plus or minus this; with ``byol`` an addition of plus or minus
            this.
        contrast: Factor within 1 plus or minus this.
        saturation: Factor within 1 plus or minus this.
        hue: Turn of the colour circle, plus or minus this, at most 0.5.
        semantics: What the four mean, see `lightning_vssl.augment.colour.jitter`; with ``byol`` the
            blur finds black beyond the borders, otherwise the picture reflected.
        grey: Probability of losing all colour.
        blur: Probability of the blur.
        blur_kernel: Taps of its kernel, odd.
        blur_sigma: Range of its standard deviation in pixels.
        solarise: Probability of the solarisation.
        solarise_threshold: Values from here on are inverted.
        shared: For each view the view whose draws it takes; RSPNet's third clip is the key at
            another speed and has the key's flip and colours: (0, 1, 1). None: each view its own.
            See `lightning_vssl.data.windows.sources`.

    Raises:
        ValueError: If a number is outside its range.
    """

    def __init__(
        self,
        mean: Colour = IMAGENET_MEAN,
        std: Colour = IMAGENET_STD,
        flip: float = 0.5,
        jitter: float | tuple[float, ...] = 0.8,
        brightness: float = 0.4,
        contrast: float = 0.4,
        saturation: float = 0.4,
        hue: float = 0.1,
        semantics: Semantics = "torchvision",
        grey: float | tuple[float, ...] = 0.2,
        blur: float | tuple[float, ...] = 0.5,
        blur_kernel: int = 23,
        blur_sigma: tuple[float, float] = (0.1, 2.0),
        solarise: float | tuple[float, ...] = 0.0,
        solarise_threshold: float = 0.5,
        shared: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(mean, std, flip, shared)
        chances = {"jitter": jitter, "grey": grey, "blur": blur, "solarise": solarise}
        for name, chance in chances.items():
            _check_probability(name, chance)
        strengths = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
        for name, strength in strengths.items():
            if strength < 0:
                raise ValueError(f"{name} must be 0 or more, got {strength}")
        if not 0 <= hue <= 0.5:
            raise ValueError(f"hue must be in [0, 0.5], part of a turn, got {hue}")
        if semantics not in ("torchvision", "byol"):
            raise ValueError(f"semantics must be 'torchvision' or 'byol', got {semantics!r}")
        if blur_kernel < 1 or blur_kernel % 2 == 0:
            raise ValueError(f"blur_kernel must be odd and positive, got {blur_kernel}")
        if not 0 < blur_sigma[0] <= blur_sigma[1]:
            raise ValueError(f"blur_sigma must be a range above 0, got {blur_sigma}")
        self.jitter = jitter
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.hue = hue
        self.semantics: Semantics = semantics
        self.grey = grey
        self.blur = blur
        self.blur_kernel = blur_kernel
        self.blur_sigma = blur_sigma
        self.solarise = solarise
        self.solarise_threshold = solarise_threshold

    def _draw(self, keys: Tensor, views: int) -> Parameters:
        added = self.semantics == "byol"
        least = -self.brightness if added else max(0.0, 1 - self.brightness)
        most = self.brightness if added else 1 + self.brightness
        factors = [
            _between(keys, _BRIGHTNESS, least, most),
            _between(keys, _CONTRAST, max(0.0, 1 - self.contrast), 1 + self.contrast),
            _between(keys, _SATURATION, max(0.0, 1 - self.saturation), 1 + self.saturation),
            _between(keys, _HUE, -self.hue, self.hue),
        ]
        return {
            "jitter": _coin(keys, _JITTER, self.jitter, views),
            "order": uniform(keys, 4, _ORDER).argsort(dim=1, stable=True),  # (B * V, 4)
            "values": torch.stack(factors, dim=1),  # (B * V, 4)
            "grey": _coin(keys, _GREY, self.grey, views),
            "blur": _coin(keys, _BLUR, self.blur, views),
            "sigma": _between(keys, _SIGMA, *self.blur_sigma),
            "solarise": _coin(keys, _SOLARISE, self.solarise, views),
        }

    def _colour(self, clips: Tensor, parameters: Parameters) -> Tensor:
        chosen = {name: parameters[name].tolist() for name in ("jitter", "grey", "blur")}
        order = parameters["order"].tolist()
        clips = jitter(clips, chosen["jitter"], order, parameters["values"], self.semantics)
        clips = on_chosen(clips, chosen["grey"], greyscale)

        def blurred(some: Tensor, sigma: Tensor) -> Tensor:
            border: Border = "zero" if self.semantics == "byol" else "reflect"
            return gaussian_blur(some, sigma, self.blur_kernel, border)

        clips = on_chosen(clips, chosen["blur"], blurred, parameters["sigma"])
        return on_chosen(
            clips,
            parameters["solarise"].tolist(),
            lambda some: solarise(some, self.solarise_threshold),
        )


class FineTuneViews(_RandomViews):
    """CtP's augmentation for fine-tuning: flip, brightness, contrast, hue with saturation.

    Supplement section 1; the values and what they mean are those of the authors' released
    configuration. The same over the frames of a clip, in this order, each by its own chance.

    Args:
        mean: Mean of each channel, RGB in [0, 1].
        std: Standard deviation of each channel.
        flip: Probability of a horizontal flip; 0 for Something-Something, whose classes know left
            from right.
        brightness: Grey levels of 255 that are added, plus or minus this.
        brightness_probability: Its probability.
        contrast: All values are multiplied by exp of a number in plus or minus this.
        contrast_probability: Its probability.
        hue: Half degrees that are added to the hue, plus or minus this (OpenCV's 8-bit scale).
        saturation: The saturation is multiplied by exp of a number in plus or minus this.
        hue_probability: Probability of the change of hue and saturation.

    Raises:
        ValueError: If a number is outside its range.
    """

    def __init__(
        self,
        mean: Colour = IMAGENET_MEAN,
        std: Colour = IMAGENET_STD,
        flip: float = 0.35,
        brightness: float = 32.0,
        brightness_probability: float = 0.2,
        contrast: float = 0.2,
        contrast_probability: float = 0.2,
        hue: float = 12.0,
        saturation: float = 0.1,
        hue_probability: float = 0.2,
    ) -> None:
        super().__init__(mean, std, flip)
        _check_probability("brightness_probability", brightness_probability)
        _check_probability("contrast_probability", contrast_probability)
        _check_probability("hue_probability", hue_probability)
        strengths = {
            "brightness": brightness,
            "contrast": contrast,
            "hue": hue,
            "saturation": saturation,
        }
        for name, strength in strengths.items():
            if strength < 0:
                raise ValueError(f"{name} must be 0 or more, got {strength}")
        self.brightness = brightness
        self.brightness_probability = brightness_probability
        self.contrast = contrast
        self.contrast_probability = contrast_probability
        self.hue = hue
        self.saturation = saturation
        self.hue_probability = hue_probability

    def _draw(self, keys: Tensor, views: int) -> Parameters:
        return {
            "brighten": _coin(keys, _BRIGHTNESS_COIN, self.brightness_probability, views),
            "brightness": _between(keys, _BRIGHTNESS, -self.brightness, self.brightness),
            "stretch": _coin(keys, _CONTRAST_COIN, self.contrast_probability, views),
            "contrast": _between(keys, _CONTRAST, -self.contrast, self.contrast).exp(),
            "tint": _coin(keys, _HUE_COIN, self.hue_probability, views),
            "hue": _between(keys, _HUE, -self.hue, self.hue),
            "saturation": _between(keys, _SATURATION, -self.saturation, self.saturation).exp(),
        }

    def _colour(self, clips: Tensor, parameters: Parameters) -> Tensor:
        chosen = {name: parameters[name].tolist() for name in ("brighten", "stretch", "tint")}
        delta = parameters["brightness"] / 255
        clips = on_chosen(clips, chosen["brighten"], shift_brightness, delta)
        clips = on_chosen(clips, chosen["stretch"], scale_brightness, parameters["contrast"])
        shifts = (parameters["hue"], parameters["saturation"])
        return on_chosen(clips, chosen["tint"], shift_hue_saturation, *shifts)
