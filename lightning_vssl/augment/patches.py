"""Catch-the-Patch's synthetic tracks: cut a patch, let it move, hide it now and then.

Source: Wang et al., CVPR 2021, section 3.3 and supplement G; where both are silent, the values of
the authors' released configuration. Differences from the paper's text, all as released: two to
four key frames instead of three to five, eased as well as linear motion, patch sides from about 9
to 108 pixels, and a patch that is never hidden in the first frame or in the frame it was cut from.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_vssl.augment.colour import (
    normalise,
    on_chosen,
    scale_brightness,
    shift_brightness,
    shift_hue_saturation,
    to_unit,
)
from lightning_vssl.augment.trajectories import (
    LabelledClips,
    LabelSource,
    draw_first_boxes,
    draw_key_frames,
    interpolate,
    make_anchors,
    whole_pixels,
)
from lightning_vssl.augment.views import IMAGENET_MEAN, IMAGENET_STD, Colour, flip_boxes
from lightning_vssl.nn.keyed import uniform

# Streams of the keyed generator; each kind of draw has its own. The first boxes' end at 18.
_CENTRE_KEYS, _SIZE_KEYS, _ALPHA_KEYS = 19, 20, 21
_CENTRE_SHIFT, _SIZE_SHIFT = 22, 23
_CENTRE_EASING, _SIZE_EASING = 24, 25
_SOURCE, _SHAPE, _EDGE, _ALPHA, _HIDE = 26, 27, 28, 29, 30
_FLIP, _TINT, _BRIGHTEN, _STRETCH = 31, 32, 33, 34
_BRIGHTNESS_KEYS, _CONTRAST_KEYS, _BRIGHTNESS, _CONTRAST = 35, 36, 37, 38
_BRIGHTNESS_EASING, _CONTRAST_EASING = 39, 40

_SHAPES = (0.50, 0.85)  # cumulated: rectangle, ellipse, (rest) rhombus


@dataclass(frozen=True)
class Tracks:
    """Everything that was drawn for the patches of a batch: enough to paste them again.

    Attributes:
        boxes: Where each patch is, (B, K, T, 4) int64, xyxy in pixels; both the place it is pasted
            at and the label.
        source: Frame that each patch is cut from, (B, K) int64.
        shape: 0 rectangle, 1 ellipse, 2 rhombus, (B, K) int64.
        edge: Radius in [0.30, 0.45) at which a soft edge begins to fall off, 0.5 for a hard edge,
            (B, K).
        alpha: Opacity in [0.8, 1], (B, K, T).
        shown: Whether the patch is pasted, (B, K, T) bool.
    """

    boxes: Tensor
    source: Tensor
    shape: Tensor
    edge: Tensor
    alpha: Tensor
    shown: Tensor


class PatchTracks(LabelSource):
    """Pre-set trajectories: the label source of the paper (Table 1, "Pre-set").

    Lengths are in pixels of the clip and fit 112 x 112 pixels.

    Args:
        trajectories: Patches K per clip (Table 2a).
        hidden: Probability that a patch is not shown in a frame, the masked region model
            (Table 2b).
        speed: Greatest speed of a patch per axis, in pixels per frame (supplement Table 5).
        growth: Greatest change of a side's logarithm per frame (supplement Table 5).
        scales: Sizes of the patches, the square root of the area in pixels.
        ratios: Aspect ratios, width over height.
        scale_jitter: Each side is multiplied by exp of a number in plus or minus this.
        key_frames: Probability of 0, 1, 2, ... key frames between the first and the last.
        opacity: Range that the opacity at key frames is drawn from.
        soft_edges: Probability of a soft edge.
    """

    def __init__(
        self,
        trajectories: int = 3,
        hidden: float = 0.2,
        speed: float = 3.0,
        growth: float = 0.025,
        scales: Sequence[float] = (16, 24, 28, 32, 48, 64),
        ratios: Sequence[float] = (0.5, 0.67, 0.75, 1.0, 1.33, 1.5, 2.0),
        scale_jitter: float = 0.18,
        key_frames: Sequence[float] = (0.5, 0.3, 0.2),
        opacity: tuple[float, float] = (0.8, 1.0),
        soft_edges: float = 0.5,
    ) -> None:
        super().__init__()
        if trajectories < 1:
            raise ValueError(f"trajectories must be at least 1, got {trajectories}")
        if not 0 <= hidden < 1:
            raise ValueError(f"hidden must be a probability in [0, 1), got {hidden}")
        if not math.isclose(sum(key_frames), 1):
            raise ValueError(f"key_frames must sum to 1, got {list(key_frames)}")
        self.trajectories = trajectories
        self.hidden = hidden
        self.speed = speed
        self.growth = growth
        self.scale_jitter = scale_jitter
        self.key_frames = tuple(key_frames)
        self.opacity = opacity
        self.soft_edges = soft_edges
        self.register_buffer("anchors", make_anchors(scales, ratios), persistent=False)  # (A, 2)
        self.anchors: Tensor

    def draw(self, key: Tensor, frames: int, height: int, width: int) -> Tracks:
        """Draws the tracks of a batch.

        Args:
            key: Keys of the samples, (B,) int64.
            frames: Frames T of the clips.
            height: Height of the clips in pixels.
            width: Width of the clips in pixels.

        Returns:
            The tracks; no pixel is looked at.
        """
        batch, count = len(key), self.trajectories
        alpha = self._opacity(key, frames)
        source = (uniform(key, count, _SOURCE) * frames).long()  # (B, K)
        shown = uniform(key, count * frames, _HIDE).view(batch, count, frames) >= self.hidden
        shown[..., 0] = True
        shown.scatter_(2, source[..., None], True)
        kind = uniform(key, count, _SHAPE)
        shape = (kind >= _SHAPES[0]).long() + (kind >= _SHAPES[1]).long()
        soft, turn = uniform(key, 2 * count, _EDGE).view(batch, 2, count).unbind(1)
        edge = torch.where(soft < self.soft_edges, 0.30 + 0.15 * turn, 0.5)
        boxes = self._boxes(key, frames, height, width)
        return Tracks(boxes, source, shape, edge, alpha, shown)

    def _opacity(self, key: Tensor, frames: int) -> Tensor:
        """Draws the opacity of each patch in each frame, (B, K, T); always linear in time."""
        batch, count = len(key), self.trajectories
        knots = len(self.key_frames) + 1
        low, high = self.opacity
        # Each patch has key frames of its own: fold K into the batch, with a key for each.
        folded = torch.arange(count, device=key.device) * 0x5851F42D4C957F2D
        folded = (key[:, None] ^ folded).flatten()  # (B * K,)
        when = draw_key_frames(folded, frames, self.key_frames, _ALPHA_KEYS)  # (B * K, M)
        values = low + (high - low) * uniform(folded, knots, _ALPHA)  # (B * K, M)
        linear = values.new_zeros(len(values), knots - 1)
        return interpolate(values, when, frames, linear).view(batch, count, frames)

    def _boxes(self, key: Tensor, frames: int, height: int, width: int) -> Tensor:
        """Draws the boxes of the trajectories, (B, K, T, 4) int64."""
        batch, count = len(key), self.trajectories
        knots = len(self.key_frames) + 1
        canvas = torch.tensor([width, height], device=key.device, dtype=torch.float32)
        centre, size = draw_first_boxes(key, count, self.anchors, self.scale_jitter, canvas)

        when = draw_key_frames(key, frames, self.key_frames, _CENTRE_KEYS)  # (B, M)
        step = when.diff(dim=1).float()  # (B, M - 1)
        shift = uniform(key, 2 * count * (knots - 1), _CENTRE_SHIFT) * 2 - 1
        shift = shift.view(batch, knots - 1, count, 2) * self.speed * step[..., None, None]
        centres = [centre]
        for segment in range(knots - 1):
            moved = centres[-1] + shift[:, segment]
            centres.append(torch.minimum(torch.maximum(moved, size / 2), canvas - size / 2))
        easing = uniform(key, knots - 1, _CENTRE_EASING)
        middle = interpolate(torch.stack(centres, 1), when, frames, easing)  # (B, T, K, 2)

        when = draw_key_frames(key, frames, self.key_frames, _SIZE_KEYS)
        step = when.diff(dim=1).float()
        change = uniform(key, 2 * count * (knots - 1), _SIZE_SHIFT) * 2 - 1
        change = change.view(batch, knots - 1, count, 2) * self.growth * step[..., None, None]
        total = F.pad(change.cumsum(1), (0, 0, 0, 0, 1, 0))  # (B, M, K, 2)
        easing = uniform(key, knots - 1, _SIZE_EASING)
        sides = interpolate(size[:, None] * total.exp(), when, frames, easing)  # (B, T, K, 2)

        return whole_pixels(middle, sides, canvas).permute(0, 2, 1, 3)

    def forward(self, clips: Tensor, drawn: Tracks, boxes: Tensor | None = None) -> LabelledClips:
        """Pastes moving patches into clips, where they are the labels; all weights are 1.

        Args:
            clips: Clips, (B, 3, T, H, W) float; changed in place.
            drawn: What `draw` returned for them.
            boxes: Not looked at.
        """
        return LabelledClips(
            paste(clips, drawn), drawn.boxes.to(clips), torch.ones_like(drawn.alpha)
        )


def patch_alpha(shape: int, edge: float, height: int, width: int, device: torch.device) -> Tensor:
    """Draws the opacity of a patch inside its box, (height, width) in [0, 1].

    Args:
        shape: 0 rectangle, 1 ellipse, 2 rhombus.
        edge: Distance from the centre, in sides, at which the opacity begins to fall linearly to
            0 at half a side; 0.5 for a hard edge.
        height: Height of the box in pixels.
        width: Width of the box in pixels.
        device: Where to make it.
    """
    y = ((torch.arange(height, device=device) + 0.5) / height - 0.5).abs()[:, None]
    x = ((torch.arange(width, device=device) + 0.5) / width - 0.5).abs()[None, :]
    if shape == 0:
        distance = torch.maximum(x, y)
    elif shape == 1:
        distance = (x**2 + y**2).sqrt()
    else:
        distance = x + y
    if edge >= 0.5:
        return (distance < 0.5).float()
    return ((0.5 - distance) / (0.5 - edge)).clamp(0, 1)


def paste(clips: Tensor, tracks: Tracks) -> Tensor:
    """Pastes the patches of `tracks` into clips.

    A patch and its opacity are made at the size of the source frame's box, before anything is
    pasted, resized together (bilinear, antialiased) to each frame's box, and blended in. Large
    patches are pasted first, so that small ones stay visible.

    Args:
        clips: Clips, (B, 3, T, H, W) float; changed in place.
        tracks: What `PatchTracks.draw` returned for them.

    Returns:
        ``clips``.
    """
    # One transfer for the whole batch: slices need their bounds on the host.
    boxes, sources, shown = tracks.boxes.tolist(), tracks.source.tolist(), tracks.shown.tolist()
    shapes, edges, opacity = tracks.shape.tolist(), tracks.edge.tolist(), tracks.alpha.tolist()
    sides = (tracks.boxes[..., 2:] - tracks.boxes[..., :2]).float().mean(2)  # (B, K, 2)
    order = sides.prod(-1).argsort(dim=1, descending=True, stable=True).tolist()
    for b, clip in enumerate(clips):
        cuts = []
        for k, source in enumerate(sources[b]):
            x1, y1, x2, y2 = boxes[b][k][source]
            alpha = patch_alpha(shapes[b][k], edges[b][k], y2 - y1, x2 - x1, clip.device)
            cuts.append(torch.cat([clip[:, source, y1:y2, x1:x2], alpha[None].to(clip)])[None])
        for k in order[b]:
            sized: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
            for t, (x1, y1, x2, y2) in enumerate(boxes[b][k]):
                if not shown[b][k][t]:
                    continue
                size = (y2 - y1, x2 - x1)
                if size not in sized:
                    resized = F.interpolate(cuts[k], size, mode="bilinear", antialias=True)[0]
                    sized[size] = resized[:3], resized[3]
                patch, alpha = sized[size]
                clip[:, t, y1:y2, x1:x2].lerp_(patch, alpha * opacity[b][k][t])
    return clips


@dataclass(frozen=True)
class PatchParameters:
    """Everything that was drawn for a batch of `CatchThePatch`.

    Attributes:
        flip: Whether the clip is mirrored, (B,) bool.
        tracks: What the label source drew; of `PatchTracks` a `Tracks`.
        tint: Whether hue and saturation change, (B,) bool.
        hue: Half degrees added to the hue, (B,).
        saturation: Factor of the saturation, (B,).
        brighten: Whether the brightness changes, (B,) bool.
        brightness: What is added to each frame, in units of [0, 1], (B, T).
        stretch: Whether the contrast changes, (B,) bool.
        contrast: Factor of each frame, (B, T).
    """

    flip: Tensor
    tracks: Any
    tint: Tensor
    hue: Tensor
    saturation: Tensor
    brighten: Tensor
    brightness: Tensor
    stretch: Tensor
    contrast: Tensor


class CatchThePatch(nn.Module):
    """The training view of CtP: flip, moving patches, colours that drift over time.

    The order is that of the authors' configuration: the patches are pasted into the flipped clip,
    and the colours change afterwards, of patch and ground alike. The crop is the data's work
    (`lightning_vssl.data.windows.ScaleCrop`).

    Args:
        tracks: The label source. None for the paper's pre-set trajectories, `PatchTracks`.
        mean: Mean of each channel, RGB in [0, 1].
        std: Standard deviation of each channel.
        flip: Probability of a horizontal flip.
        hue: Half degrees added to the hue, plus or minus this.
        saturation: The saturation is multiplied by exp of a number in plus or minus this.
        hue_probability: Probability of a change of hue and saturation.
        brightness: Grey levels of 255 added, plus or minus this, drawn at key frames.
        brightness_probability: Probability of a change of brightness.
        contrast: Values are multiplied by exp of a number in plus or minus this, drawn at key
            frames.
        contrast_probability: Probability of a change of contrast.
        colour_key_frames: Probability of 0, 1, ... inner key frames of brightness and contrast.
    """

    def __init__(
        self,
        tracks: LabelSource | None = None,
        mean: Colour = IMAGENET_MEAN,
        std: Colour = IMAGENET_STD,
        flip: float = 0.5,
        hue: float = 12.0,
        saturation: float = 0.1,
        hue_probability: float = 0.25,
        brightness: float = 30.0,
        brightness_probability: float = 0.5,
        contrast: float = 0.12,
        contrast_probability: float = 0.5,
        colour_key_frames: Sequence[float] = (0.7, 0.3),
    ) -> None:
        super().__init__()
        self.tracks: LabelSource = tracks if tracks is not None else PatchTracks()
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)
        self.mean: Tensor
        self.std: Tensor
        self.flip = flip
        self.hue = hue
        self.saturation = saturation
        self.hue_probability = hue_probability
        self.brightness = brightness
        self.brightness_probability = brightness_probability
        self.contrast = contrast
        self.contrast_probability = contrast_probability
        self.colour_key_frames = tuple(colour_key_frames)

    def draw(self, key: Tensor, frames: int, height: int, width: int) -> PatchParameters:
        """Draws all parameters of a batch; see `LabelSource.draw` for the arguments."""
        coin, hue, saturation = (uniform(key, 3, _TINT) * 2 - 1).unbind(1)
        brightness = self._drift(
            key, frames, _BRIGHTNESS_KEYS, _BRIGHTNESS, _BRIGHTNESS_EASING, self.brightness
        )
        # As released: the factor is drawn, and eased, after the exponential.
        contrast = self._drift(
            key, frames, _CONTRAST_KEYS, _CONTRAST, _CONTRAST_EASING, self.contrast, exp=True
        )
        return PatchParameters(
            flip=uniform(key, 1, _FLIP)[:, 0] < self.flip,
            tracks=self.tracks.draw(key, frames, height, width),
            tint=(coin + 1) / 2 < self.hue_probability,
            hue=hue * self.hue,
            saturation=(saturation * self.saturation).exp(),
            brighten=uniform(key, 1, _BRIGHTEN)[:, 0] < self.brightness_probability,
            brightness=brightness / 255,
            stretch=uniform(key, 1, _STRETCH)[:, 0] < self.contrast_probability,
            contrast=contrast,
        )

    def _drift(
        self,
        key: Tensor,
        frames: int,
        keys_stream: int,
        values_stream: int,
        easing_stream: int,
        reach: float,
        exp: bool = False,
    ) -> Tensor:
        """Draws a value at key frames and fills in the others, (B, T)."""
        knots = len(self.colour_key_frames) + 1
        when = draw_key_frames(key, frames, self.colour_key_frames, keys_stream)
        values = (uniform(key, knots, values_stream) * 2 - 1) * reach
        easing = uniform(key, knots - 1, easing_stream)
        return interpolate(values.exp() if exp else values, when, frames, easing)

    @torch.no_grad()
    def replay(
        self, video: Tensor, drawn: PatchParameters, boxes: Tensor | None = None
    ) -> LabelledClips:
        """Makes the view that belongs to drawn parameters.

        Args:
            video: Clips, (B, 1, T, 3, H, W) uint8.
            drawn: What `draw` returned, or ``batch["patch_params"]``.
            boxes: Boxes that came with the clips, (B, 1, T, N, 4), xyxy in pixels, or None.

        Returns:
            The labels; their clips are float32 and normalised.
        """
        clips = to_unit(video[:, 0])  # (B, 3, T, H, W)
        clips = on_chosen(clips, drawn.flip.tolist(), lambda chosen: chosen.flip(-1))
        if boxes is not None:
            mirrored = flip_boxes(boxes[:, 0], video.shape[-1])  # (B, T, N, 4)
            boxes = torch.where(drawn.flip[:, None, None, None], mirrored, boxes[:, 0])
        labels = self.tracks(clips, drawn.tracks, boxes)
        clips = on_chosen(
            labels.clips, drawn.tint.tolist(), shift_hue_saturation, drawn.hue, drawn.saturation
        )
        clips = on_chosen(clips, drawn.brighten.tolist(), shift_brightness, drawn.brightness)
        clips = on_chosen(clips, drawn.stretch.tolist(), scale_brightness, drawn.contrast)
        views = normalise(clips, self.mean, self.std, out=torch.empty_like(clips))
        return LabelledClips(views, *labels[1:])

    @torch.no_grad()
    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor | PatchParameters]:
        """Makes the training view of a batch.

        Args:
            batch: Holds ``video`` (B, 1, T, 3, H, W) uint8, ``key`` (B,) int64 and, for
                annotated trajectories, ``boxes`` (B, 1, T, N, 4).

        Returns:
            A copy of the batch with ``views`` (B, 1, 3, T, H, W), ``trajectories`` (B, K, T, 4)
            xyxy in pixels of the views, ``trajectory_weights`` (B, K, T), what was drawn in
            ``patch_params`` and, where the network makes some labels itself, ``own_labels`` (B,)
            bool.

        Raises:
            ValueError: If ``video`` is not uint8 of that shape, with one clip per sample.
        """
        video = batch["video"]
        if video.dtype != torch.uint8 or video.dim() != 6 or video.shape[1] != 1:
            raise ValueError(
                "CatchThePatch plays on one uint8 clip per sample, (B, 1, T, 3, H, W); got "
                f"{video.dtype} of shape {tuple(video.shape)}. Choose clips with one view, "
                "JitteredClip for example"
            )
        frames, _, height, width = video.shape[2:]
        drawn = self.draw(batch["key"], frames, height, width)
        labels = self.replay(video, drawn, batch.get("boxes"))
        own = {} if labels.own is None else {"own_labels": labels.own}
        return {
            **batch,
            "views": labels.clips[:, None],
            "trajectories": labels.boxes,
            "trajectory_weights": labels.weights,
            "patch_params": drawn,
            **own,
        }
