"""Following an object by Grad-CAM from the mask in its first frame (PreViTS, section 4.5, Table 6).

The first frame's object alone is the key; later frames are queries; what is hot is where a query's
projection resembles the key's. No track is kept: each frame is asked by itself.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Literal, get_args

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_vssl.backbones.base import Backbone
from lightning_vssl.backbones.weights import load_head
from lightning_vssl.data.masks import MaskedSequence
from lightning_vssl.evaluation.base import Batch, Evaluation
from lightning_vssl.evaluation.segmentation import HasMaskedVideos
from lightning_vssl.metrics.heat_tracking import HeatTracking
from lightning_vssl.nn.grad_cam import key_foreground, likeness_cam, resize_cam
from lightning_vssl.nn.heads import MLP
from lightning_vssl.nn.recompute import norms_by_batch

KeyNorms = Literal["batch", "running"]


def key_codes(backbone: Backbone, head: nn.Module, keys: Tensor, norms: KeyNorms) -> Tensor:
    """Codes of objects alone.

    Args:
        backbone: In eval mode.
        head: From pooled features (B, C) to (B, D), in eval mode.
        keys: Normalised, all but the object at the mean colour, (K, 3, T, H, W); see
            `lightning_vssl.nn.grad_cam.key_foreground`. An image network sees the middle frame.
        norms: Whose statistics batch norms take: those of these keys together (``batch``), or the
            ``running`` ones.

    Returns:
        Unit vectors, (K, D).

    Raises:
        ValueError: If a head with batch norms gets a batch of one key.
    """
    if (
        norms == "batch"
        and len(keys) == 1
        and any(isinstance(m, _BatchNorm) for m in head.modules())
    ):
        raise ValueError(
            "key_norms: batch takes the statistics of the keys of all sequences, and there is one "
            "sequence: set key_norms: running"
        )
    with torch.no_grad(), ExitStack() as stack:
        if norms == "batch":
            for module in (backbone, head):
                stack.enter_context(norms_by_batch(module))
        shown = keys if backbone.dims == 3 else keys[:, :, keys.shape[2] // 2]
        maps: Tensor = backbone(shown)
        return F.normalize(head(maps.float().flatten(2).mean(2)), dim=1)


def query_heat(backbone: Backbone, head: nn.Module, queries: Tensor, code: Tensor) -> Tensor:
    """Grad-CAM of queries for their likeness to a key.

    Args:
        backbone: In eval mode.
        head: As for `key_codes`.
        queries: Normalised, (N, 3, T, H, W). An image network sees the middle frame.
        code: Of the key, (D,), or one for each query, (N, D).

    Returns:
        (N, h, w), not negative, of the map's own cells, at the middle frame.
    """
    middle = queries.shape[2] // 2
    with torch.no_grad():
        maps: Tensor = backbone(queries if backbone.dims == 3 else queries[:, :, middle])
    cam = likeness_cam(maps, head, code if code.dim() == 2 else code[None])
    if cam.dim() == 3:
        return cam
    return resize_cam(cam, (queries.shape[2], *cam.shape[2:]))[:, middle]  # of (N, T', h, w)


class GradCAMTracking(Evaluation):
    """J of masks made of Grad-CAM maps on DAVIS-2016 (PreViTS, Table 6).

    Only ``test`` runs it. Frames are used whole, brought to ``size`` without keeping their shape,
    as in the released code. The first frame times its mask is the key, and by DAVIS's rules all
    frames but the first and the last are queries. The step from map to mask, on which the papers
    are silent, is that of `lightning_vssl.metrics.heat_tracking.heat_masks`.

    What the paper leaves open, and how it is here:

    - Query and key are encoded by the same network, the one that is exported; training moves the
      key network after it, and at the end of a schedule the two are almost the same.
    - Batch norms take the statistics of all keys of the split together when they encode keys
      (``key_norms: batch``), as in training, where keys are objects alone too. The running
      statistics are of whole pictures, and by them the code of an object on plain ground is far
      off: small networks on the built-in videos lose by them (one seed of benchmarks/previts.py,
      250 steps: PreViTS 35.9 for 44.6, MoCo 12.0 for 18.9). So a sequence's numbers depend on
      the first frames and masks of the others, though on no later frame; ``running`` makes them
      its own. Queries always take the running ones.
    - A network of clips sees the frames around each query, the first and last repeated beyond the
      ends, and the first frame repeated as key.

    Results, in percent: ``J_mean``, ``J_recall`` and ``J_decay``. ``result.json`` also tells what
    other thresholds give, and the floor: the first mask left where it is.

    Args:
        backbone: The network, or None to take the one that ``weights`` describes.
        weights: An export's folder, which holds the head; None for the untouched network, which has
            none: its pooled features are compared.
        head: Name of the exported head whose output is compared; None compares pooled features,
            for methods without one.
        size: Height and width that frames are brought to.
        frames: Frames that a network of clips sees at once.
        threshold: Where the map, brought to [0, 1], is cut.
        key_norms: ``batch`` or ``running``, see above.
        queries_at_once: Frames (or clips) of a sequence that pass the network together.
        view: Makes the views; None normalises as the backbone wants its pixels.
        paper: The paper's numbers, for instance ``{"J_mean": 54.4}``.

    Raises:
        ValueError: If a number is out of its range, ``key_norms`` is unknown, or there is no such
            head that fits the network.
    """

    def __init__(
        self,
        *,
        backbone: Backbone | None = None,
        weights: str | None = None,
        head: str | None = "projector",
        size: tuple[int, int] = (224, 224),
        frames: int = 16,
        threshold: float = 0.5,
        key_norms: KeyNorms = "batch",
        queries_at_once: int = 16,
        view: nn.Module | None = None,
        paper: dict[str, float] | None = None,
    ) -> None:
        super().__init__(
            backbone=backbone,
            weights=weights,
            view=view,
            augment=None,
            clips_at_once=None,
            paper=paper,
        )
        if key_norms not in get_args(KeyNorms):
            raise ValueError(f"key_norms must be batch or running, got {key_norms!r}")
        if min(frames, queries_at_once, *size) < 1:
            raise ValueError(
                f"frames={frames}, queries_at_once={queries_at_once}, size={size}: each 1 or more"
            )
        self.head_name = None if weights is None else head
        self.head = _head(self.backbone, weights, self.head_name)
        self.size = (size[0], size[1])
        self.frames = frames if self.backbone.dims == 3 else 1
        self.key_norms: KeyNorms = key_norms
        self.queries_at_once = queries_at_once
        self.metric = HeatTracking(threshold)
        self._codes: dict[str, tuple[int, Tensor]] = {}  # by the sequence's name
        self.eval().requires_grad_(False)

    def on_after_batch_transfer(  # type: ignore[override]  # a sequence is no batch of tensors
        self, batch: MaskedSequence, dataloader_idx: int
    ) -> MaskedSequence:
        """Leaves a sequence as it is: it is read frame by frame."""
        return batch

    def views_of(self, pixels: Tensor) -> Tensor:
        """Normalises clips on the device.

        Args:
            pixels: (N, T, 3, H, W) uint8.

        Returns:
            (N, 3, T, H, W).
        """
        made: Batch = self.view({"video": pixels.to(self.device)[:, None]})
        return made["views"][:, 0]

    def key_of(self, sequence: MaskedSequence) -> Tensor:
        """The first frame's object alone, normalised, (1, 3, T, H, W).

        Raises:
            ValueError: If the first mask has no object.
            UnreadableFrame: If a file cannot be read.
        """
        mask = sequence.mask(0)  # (H, W)
        if not bool(((mask != 0) & (mask != 255)).any()):
            raise ValueError(
                f"{sequence.name}: the first frame's mask has no object: nothing to follow"
            )
        frame = self._small(sequence.frames.frame(0))
        views = self.views_of(frame[None, None].expand(-1, self.frames, -1, -1, -1))
        return key_foreground(views, mask[None, None].to(self.device))

    @torch.no_grad()
    def heat(self, sequence: MaskedSequence, code: Tensor) -> Tensor:
        """Where each frame but the first and the last resembles a key.

        Args:
            sequence: The frames; masks are not looked at.
            code: The key's, (D,).

        Returns:
            (F - 2, h, w), not negative.

        Raises:
            UnreadableFrame: If a frame cannot be read.
        """
        small = torch.stack([self._small(frame) for frame in sequence.frames.frames()])
        around = torch.arange(self.frames) - self.frames // 2
        places = (torch.arange(1, len(small) - 1)[:, None] + around).clamp(0, len(small) - 1)
        heat = [
            query_heat(self.backbone, self.head, self.views_of(small[part]), code)
            for part in torch.split(places, self.queries_at_once)
        ]
        return torch.cat(heat)

    def on_fit_start(self) -> None:
        """There is nothing to train.

        Raises:
            ValueError: Always.
        """
        raise ValueError("GradCAMTracking trains nothing: run test, not fit")

    def on_test_start(self) -> None:
        """Encodes all keys of the split together, on every rank alike.

        Raises:
            ValueError: If the data are not videos with masks, or a first mask has no object.
            UnreadableFrame: If a first frame or its mask cannot be read.
        """
        module = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(module, HasMaskedVideos):
            raise ValueError(
                f"GradCAMTracking follows objects from their first mask, and "
                f"{type(module).__name__} has no videos with masks: use DAVIS"
            )
        sequences = module.sequences(module.split)
        keys = torch.cat([self.key_of(sequence) for sequence in sequences])
        codes = key_codes(self.backbone, self.head, keys, self.key_norms)
        self._codes = {
            sequence.name: (index, code)
            for index, (sequence, code) in enumerate(zip(sequences, codes, strict=True))
        }
        self._input = {"frames": self.frames, "height": self.size[0], "width": self.size[1]}

    def test_step(self, batch: MaskedSequence, batch_idx: int) -> dict[str, Tensor]:
        """Follows one sequence's object; gives the maps to callbacks, (F - 2, h, w)."""
        if len(batch) < 3:
            raise ValueError(
                f"{batch.name}: {len(batch)} frames; three or more are needed, since the first and "
                "the last are not scored"
            )
        index, code = self._codes[batch.name]
        heat = self.heat(batch, code)
        self.metric.update(heat, torch.stack(list(batch.masks())), index)
        return {"heat": heat}

    def on_test_epoch_end(self) -> None:
        """Averages, logs and writes the result."""
        results = {name: 100 * value for name, value in self.metric.compute().items()}
        other = self.metric.sensitivity()
        best, reached = other.best
        names = {index: name for name, (index, _) in self._codes.items()}
        details: dict[str, object] = {
            "sensitivity": {
                "J_mean_by_threshold": {str(t): 100 * v for t, v in other.by_threshold.items()},
                "best_threshold_in_hindsight": {"threshold": best, "J_mean": 100 * reached},
                "as_many_pixels_as_the_first_mask": 100 * other.first_area,
                "first_mask_left_where_it_is": 100 * other.first_mask,
            },
            "sequences": {
                names[index]: {f"J_{n}": 100 * v for n, v in found._asdict().items()}
                for index, found in sorted(self.metric.sequences().items())
            },
        }
        self.metric.reset()
        self.log_dict(
            {f"test/{name}": value for name, value in results.items()}, rank_zero_only=True
        )
        self.report("test", results, details)

    def protocol(self) -> dict[str, object]:
        """The arguments that make up the protocol."""
        return {
            **super().protocol(),
            "head": self.head_name or "none: pooled features",
            "key": "first frame times its mask, the rest at the mean colour; the query's network",
            "key_norms": self.key_norms,
            "mask": f"map to [0, 1] over its cells, bilinear to the frame, above "
            f"{self.metric.threshold}",
            "measure": "DAVIS's J over frames 1 to T - 2, then the mean over sequences",
        }

    def _small(self, frame: Tensor) -> Tensor:
        """A frame (3, H, W) uint8 at the network's size."""
        small = F.interpolate(frame[None], self.size, mode="bilinear", antialias=True)
        return small[0]


def _head(backbone: Backbone, weights: str | None, name: str | None) -> nn.Module:
    """The head that was exported beside a backbone, checked against it."""
    if weights is None or name is None:
        rank_zero_info("pooled features are compared: there is no head")
        return nn.Identity()
    other = "or set head: null to compare pooled features"
    if not Path(weights).is_dir():
        raise ValueError(
            f"GradCAMTracking compares what the method's head {name!r} gives, which stands in an "
            f"export's folder, and {weights} is none: export the checkpoint first (lightning-vssl "
            f"export), {other}"
        )
    try:
        head = load_head(weights, name)
    except ValueError as error:
        raise ValueError(
            f"{error}. Methods of a momentum queue (MoCo, RSPNet, PreViTS) export 'projector': "
            f"name another head, {other}"
        ) from error
    if not isinstance(head, MLP) or head.in_features != backbone.num_features:
        raise ValueError(
            f"the head {name!r} of {weights} is a {type(head).__name__} that does not take the "
            f"{backbone.num_features} pooled features of {type(backbone).__name__}: name another "
            f"head, {other}"
        )
    return head
