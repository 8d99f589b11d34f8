"""Collapse, seen early: how spread out the embeddings are."""

import math

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.nn import functional as F

from lightning_vssl.nn.gather import gather, world_size


def feature_std(embeddings: Tensor) -> Tensor:
    """Standard deviation of unit embeddings, averaged over dimensions, times sqrt(D).

    1 for directions spread evenly, 0 when all point the same way (SimSiam, Chen and He 2021,
    section 4.1).

    Args:
        embeddings: (N, D), N at least 1.

    Returns:
        () float64, in [0, 1] up to sampling.
    """
    unit = F.normalize(embeddings.double(), dim=1)
    return unit.std(dim=0, correction=0).mean() * math.sqrt(unit.shape[1])


def rankme(embeddings: Tensor) -> Tensor:
    """Effective rank: RankMe, the exp of the entropy of the singular values.

    Garrido et al. 2023, Eq. 1 and 2. The matrix is not centred, as in the paper.

    Args:
        embeddings: (N, D).

    Returns:
        () float64, between 1 (all vectors on one line) and min(N, D).
    """
    z = embeddings.double()
    gram = z.T @ z if z.shape[0] >= z.shape[1] else z @ z.T
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    share = singular / singular.sum().clamp(min=torch.finfo(z.dtype).tiny)
    entropy: Tensor = torch.special.entr(share).sum()
    return entropy.exp()


class CollapseMonitor(Callback):
    """Logs how spread out the embeddings of recent training batches are, and warns of a collapse.

    Takes ``outputs["embedding"]`` (B, D) of every training step into a rolling buffer; every n
    steps gathers the buffers of all ranks and logs ``monitor/feature_std`` (see `feature_std`) and
    ``monitor/rankme`` (see `rankme`). Embeddings that are not finite are logged as NaN. A resumed
    run starts with an empty buffer.

    Args:
        size: Embeddings in the buffer, over all ranks. RankMe cannot exceed it: keep it above D.
        every_n_steps: Measure every n-th optimiser step.
        least_std: Warn, once per run, when the std of a full buffer is below this.
        least_rank: Warn, once per run, when its RankMe is below this.

    Raises:
        ValueError: If ``size`` or ``every_n_steps`` is below 1.
    """

    def __init__(
        self,
        size: int = 2048,
        every_n_steps: int = 100,
        least_std: float = 0.01,
        least_rank: float = 1.5,
    ) -> None:
        super().__init__()
        if size < 1 or every_n_steps < 1:
            raise ValueError(
                f"size and every_n_steps must be at least 1; got {size=}, {every_n_steps=}."
            )
        self.size = size
        self.every_n_steps = every_n_steps
        self.least_std = least_std
        self.least_rank = least_rank
        self.warned = False
        self._buffer: Tensor | None = None
        self._rows = 0  # rows written so far
        self._measured = -1

    def state_dict(self) -> dict[str, bool]:
        """Whether the warning was given."""
        return {"warned": self.warned}

    def load_state_dict(self, state_dict: dict[str, bool]) -> None:
        """Does not warn again after a resume."""
        self.warned = state_dict["warned"]

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Keeps the embeddings; measures every n steps."""
        if not isinstance(outputs, dict) or "embedding" not in outputs:
            raise ValueError(
                f"CollapseMonitor needs outputs['embedding']; the training step of"
                f" {type(pl_module).__name__} does not return it. Take the callback out of the"
                " recipe."
            )
        self._keep(outputs["embedding"].detach())
        step = trainer.global_step
        if step % self.every_n_steps or step == self._measured:
            return  # with accumulation several batches end at one step
        self._measured = step
        std, effective_rank = self.measure()
        rows = min(self._rows, self._capacity())
        pl_module.log("monitor/feature_std", std, batch_size=rows)
        pl_module.log("monitor/rankme", effective_rank, batch_size=rows)
        if rows == self._capacity() and not self.warned:
            self._warn(float(std), float(effective_rank), step)

    def _capacity(self) -> int:
        return max(1, self.size // world_size())

    def _keep(self, embedding: Tensor) -> None:
        capacity = self._capacity()
        if self._buffer is None:
            self._buffer = embedding.new_zeros((capacity, embedding.shape[1]), dtype=torch.float32)
        new = embedding[-capacity:].float()
        rows = (self._rows + torch.arange(len(new), device=new.device)) % capacity
        self._buffer.index_copy_(0, rows, new)
        self._rows += len(new)

    def measure(self) -> tuple[Tensor, Tensor]:
        """Std and RankMe of the buffers of all ranks, () float32 each; NaN if not finite.

        Raises:
            ValueError: If no embedding was kept yet.
        """
        if self._buffer is None:
            raise ValueError("No embedding was kept yet.")
        with torch.no_grad(), torch.autocast(self._buffer.device.type, enabled=False):
            everything = gather(self._buffer[: self._rows])
            finite = everything.isfinite().all()
            everything = everything.where(finite, 0.0)
            values = torch.stack([feature_std(everything), rankme(everything)])
            std, effective_rank = values.where(finite, torch.nan).float()
            return std, effective_rank

    def _warn(self, std: float, effective_rank: float, step: int) -> None:
        if std >= self.least_std and effective_rank >= self.least_rank:
            return
        self.warned = True
        rank_zero_warn(
            f"The embeddings may have collapsed at step {step}: std {std:.4f} (1 is spread evenly,"
            f" the limit {self.least_std}), RankMe {effective_rank:.2f} (limit {self.least_rank})."
            " Look at the loss, the learning rate and the augmentation."
        )
