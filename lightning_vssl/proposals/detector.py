"""Boxes of detectors (ConST-CL section 3.3, "boxes from detectors").

The paper's own are a CenterNet for persons and a Cascade R-CNN for objects of any class, neither of
them released with it. Here one of torchvision's detectors, trained on COCO, does for both: its
Table 7 finds no difference between sources of boxes beyond a point.
"""

import hashlib
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models import detection, get_model, get_model_weights, list_models

from lightning_vssl.proposals.base import Proposals

_PERSON = 1  # in COCO's numbering, which torchvision keeps
_LEAST = 1e-3  # share of the frame below which a box has no side to speak of


class Detector(nn.Module, Proposals):
    """Boxes of a detector of torchvision, on the accelerator; the highest score comes first.

    Args:
        network: Name of a detector of `torchvision.models.detection`.
        weights: A file of its weights (.pth or .safetensors), or the name of torchvision's own,
            such as ``COCO_V1``, which are downloaded; None leaves it untrained: for tests alone.
        classes: Boxes of persons alone, or of all classes.
        threshold: Least score, in [0, 1].
        max_boxes: Most boxes of a frame.
        short_side: Pixels of the frame's short side that the detector sees.
        frames_at_once: Frames of a forward pass.

    Raises:
        ValueError: If there is no such detector or there are no such weights, the weights do not
            fit, or a number is out of its range.
    """

    def __init__(
        self,
        network: str = "fasterrcnn_resnet50_fpn_v2",
        weights: str | None = "DEFAULT",
        *,
        classes: Literal["person", "all"] = "all",
        threshold: float = 0.5,
        max_boxes: int = 16,
        short_side: int = 256,
        frames_at_once: int = 16,
    ) -> None:
        super().__init__()
        known = list_models(module=detection)
        if network not in known:
            raise ValueError(f"network={network!r}: choose one of {', '.join(known)}")
        if classes not in ("person", "all"):
            raise ValueError(f"classes={classes!r}: choose 'person' or 'all'")
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold={threshold}: a score, 0 to 1")
        if min(max_boxes, short_side, frames_at_once) < 1:
            raise ValueError(
                f"max_boxes={max_boxes}, short_side={short_side}, "
                f"frames_at_once={frames_at_once}: each 1 or more"
            )
        self.network, self._weights = _loaded(network, weights)
        vars(self.network.transform)["min_size"] = (short_side,)  # SSD has a size of its own
        self.name = network
        self.classes = classes
        self.threshold = threshold
        self.max_boxes = max_boxes
        self.short_side = short_side
        self.frames_at_once = frames_at_once

    @property
    def limit(self) -> int:
        """N, the most boxes of a frame."""
        return self.max_boxes

    @property
    def source(self) -> str:
        """Which detector."""
        return f"detector {self.name}"

    @property
    def settings(self) -> dict[str, object]:
        """The settings; weights from a file by their hash."""
        return {
            "weights": self._weights,
            "classes": self.classes,
            "threshold": self.threshold,
            "max_boxes": self.max_boxes,
            "short_side": self.short_side,
        }

    @torch.no_grad()
    def forward(self, frames: Tensor) -> Tensor:
        """Proposes boxes; see `Proposals.__call__`.

        Args:
            frames: (F, 3, H, W) uint8 RGB.

        Returns:
            (F, max_boxes, 4) float32 shares, NaN behind the last.
        """
        self.network.eval()
        out = torch.full((len(frames), self.max_boxes, 4), torch.nan, device=frames.device)
        with torch.autocast(frames.device.type, enabled=False):
            for first in range(0, len(frames), self.frames_at_once):
                part = frames[first : first + self.frames_at_once].float() / 255
                for place, found in enumerate(self.network(list(part)), first):
                    boxes = self._chosen(found, frames.shape[-2], frames.shape[-1])
                    out[place, : len(boxes)] = boxes
        return out

    def _chosen(self, found: dict[str, Tensor], height: int, width: int) -> Tensor:
        """The boxes kept of one frame's, (n, 4) shares."""
        size = found["boxes"].new_tensor([width, height, width, height])
        boxes = (found["boxes"] / size).clamp(0, 1)
        kept = (found["scores"] >= self.threshold) & ((boxes[:, 2:] - boxes[:, :2]) >= _LEAST).all(
            dim=1
        )
        if self.classes == "person":
            kept &= found["labels"] == _PERSON
        best = found["scores"][kept].sort(descending=True, stable=True).indices
        return boxes[kept][best[: self.max_boxes]]


def _loaded(name: str, weights: str | None) -> tuple[nn.Module, str | None]:
    """The network, and what to call its weights."""
    if weights is None:
        return get_model(name, weights=None, weights_backbone=None), None
    file = Path(weights).expanduser()
    if file.is_file():
        network = get_model(name, weights=None, weights_backbone=None)
        try:
            network.load_state_dict(_state(file))
        except (RuntimeError, KeyError, TypeError) as error:
            raise ValueError(f"the weights in {file} do not fit {name}: {error}") from error
        with file.open("rb") as stream:
            return network, "sha256 " + hashlib.file_digest(stream, "sha256").hexdigest()
    known = [entry.name for entry in get_model_weights(name)]
    if weights not in (*known, "DEFAULT"):
        raise ValueError(
            f"weights={weights!r}: there is no such file, and torchvision's of {name} are "
            f"{', '.join(known)}"
        )
    chosen = get_model_weights(name)[weights]
    return get_model(name, weights=chosen), str(chosen)


def _state(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    state: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    inner = state.get("model")  # as torchvision's reference scripts save it
    return inner if isinstance(inner, dict) else state
