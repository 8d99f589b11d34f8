"""Mean overlap of predicted trajectories with true ones (CtP, section 4.3, Figure 3)."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_vssl.metrics.neighbours import first_of_each
from lightning_vssl.metrics.tracking import box_overlaps


class TrajectoryOverlap(Metric):
    """Mean IoU over the frames of clips that show the object, the given first frame left out.

    ``compute`` gives ``miou`` and, for comparison, ``held``: that of the first box held still. In
    [0, 1]. A clip counts once, by its index; ``clips`` and ``frames`` are how many were counted.
    """

    is_differentiable = False
    full_state_update = False

    rows: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.set_dtype(torch.float64)
        # Flat, because what torchmetrics makes up for a rank without rows has one dimension.
        self.add_state("rows", default=[], dist_reduce_fx="cat")
        self.clips = self.frames = 0

    def update(self, predicted: Tensor, truth: Tensor, index: Tensor) -> None:
        """Adds clips.

        Args:
            predicted: xyxy, (B, T, 4).
            truth: The same of the object, NaN where it is not seen; its first boxes are the ones
                that were given.
            index: Number of each clip, (B,).

        Raises:
            ValueError: If the shapes differ, or a predicted box is not finite.
        """
        if predicted.shape != truth.shape or index.shape != truth.shape[:1]:
            raise ValueError(
                f"predicted and truth must be (B, T, 4) alike and index (B,); got "
                f"{tuple(predicted.shape)}, {tuple(truth.shape)}, {tuple(index.shape)}"
            )
        if not predicted.isfinite().all():
            raise ValueError("a predicted box is NaN or infinite: training has diverged")
        behind = truth[:, 1:]
        shape = behind.shape[:2]
        held = truth[:, :1].expand_as(behind)
        ours, still = (
            box_overlaps(boxes.flatten(0, 1), behind.flatten(0, 1)).reshape(shape)
            for boxes in (predicted[:, 1:], held)
        )  # (B, T - 1), NaN where there is no object
        seen = (~ours.isnan()).sum(1).double()
        columns = (index.cpu().double(), seen, ours.nansum(1), still.nansum(1))
        self.rows.append(torch.stack(columns, dim=1).flatten().to(self.device))

    def compute(self) -> dict[str, float]:
        """``miou`` and ``held`` in [0, 1].

        Raises:
            ValueError: If no clip was added, or none shows its object behind its first frame.
        """
        if len(self.rows) == 0:
            raise ValueError("no clip was added: nothing to compare")
        table = dim_zero_cat(self.rows).reshape(-1, 4).cpu()
        table = table[first_of_each(table[:, 0].long())]
        table = table[table[:, 0].argsort()]
        self.clips, self.frames = len(table), int(table[:, 1].sum())
        if self.frames == 0:
            raise ValueError("no clip shows its object behind its first frame")
        return {
            "miou": float(table[:, 2].sum() / self.frames),
            "held": float(table[:, 3].sum() / self.frames),
        }
