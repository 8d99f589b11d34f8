"""Learning-rate schedules as pure functions of the step, and parameter groups."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, NotRequired, TypedDict

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class Schedule(ABC):
    """The factor that multiplies the optimiser's learning rate, step by step."""

    @abstractmethod
    def factor(self, step: int, steps_per_epoch: int, total_steps: int) -> float:
        """Gives the factor of one step.

        Args:
            step: Optimiser steps done so far, from 0.
            steps_per_epoch: Optimiser steps in one epoch.
            total_steps: Optimiser steps of the whole run.

        Returns:
            The factor; 1 leaves the optimiser's own learning rate.
        """


@dataclass(frozen=True)
class Constant(Schedule):
    """The optimiser's learning rate throughout."""

    def factor(self, step: int, steps_per_epoch: int, total_steps: int) -> float:
        """Gives 1 at every step."""
        return 1.0


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from 1 down to ``final``, after a linear warm-up from 0.

    Attributes:
        warmup_epochs: Length of the warm-up in epochs; the cosine runs over what is left.
        final: Factor at the end of the run, in [0, 1].
    """

    warmup_epochs: float = 0.0
    final: float = 0.0

    def __post_init__(self) -> None:
        if self.warmup_epochs < 0:
            raise ValueError(f"warmup_epochs must be 0 or more, got {self.warmup_epochs}")
        if not 0 <= self.final <= 1:
            raise ValueError(f"final must be in [0, 1], got {self.final}")

    def factor(self, step: int, steps_per_epoch: int, total_steps: int) -> float:
        """Gives step / warm-up while warming up, then the cosine.

        Raises:
            ValueError: If the warm-up is as long as the run or longer.
        """
        warmup = self.warmup_epochs * steps_per_epoch
        if warmup > 0 and warmup >= total_steps:
            raise ValueError(
                f"warmup_epochs={self.warmup_epochs} is {warmup:g} steps, but the run has only "
                f"{total_steps}; shorten the warm-up or train longer"
            )
        if step < warmup:
            return step / warmup
        share = min(1.0, (step - warmup) / max(1.0, total_steps - warmup))
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * share)) / 2


@dataclass(frozen=True)
class MultiStep(Schedule):
    """Multiplied by ``gamma`` at each milestone, after an optional linear warm-up.

    Attributes:
        milestones: Epochs, ascending; fractions of an epoch are allowed.
        gamma: Factor of each milestone.
        warmup_steps: Length of the warm-up in optimiser steps.
        warmup_start: Factor at step 0 of the warm-up, from where it rises linearly to 1.
    """

    milestones: tuple[float, ...]
    gamma: float = 0.1
    warmup_steps: int = 0
    warmup_start: float = 0.1

    def __post_init__(self) -> None:
        if list(self.milestones) != sorted(self.milestones) or min(self.milestones, default=0) < 0:
            raise ValueError(
                f"milestones must be epochs of 0 or more in ascending order, got {self.milestones}"
            )
        if self.gamma <= 0:
            raise ValueError(f"gamma must be above 0, got {self.gamma}")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must be 0 or more, got {self.warmup_steps}")
        if not 0 <= self.warmup_start <= 1:
            raise ValueError(f"warmup_start must be in [0, 1], got {self.warmup_start}")

    def factor(self, step: int, steps_per_epoch: int, total_steps: int) -> float:
        """Gives gamma to the number of milestones passed, times the warm-up."""
        passed = sum(step >= milestone * steps_per_epoch for milestone in self.milestones)
        factor = self.gamma**passed
        if step < self.warmup_steps:
            factor *= self.warmup_start + (1 - self.warmup_start) * step / self.warmup_steps
        return factor


def lambda_lr(
    optimizer: Optimizer, schedule: Schedule, steps_per_epoch: int, total_steps: int
) -> LambdaLR:
    """Makes the scheduler that follows ``schedule``; it is to be stepped at every optimiser step.

    Args:
        optimizer: The optimiser; every group's learning rate is multiplied.
        schedule: The factors.
        steps_per_epoch: Optimiser steps in one epoch.
        total_steps: Optimiser steps of the whole run.

    Raises:
        ValueError: If a number of steps is below 1, or the schedule does not fit the run.
    """
    for name, value in (("steps_per_epoch", steps_per_epoch), ("total_steps", total_steps)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")

    def factor(step: int) -> float:
        return schedule.factor(step, steps_per_epoch, total_steps)

    return LambdaLR(optimizer, factor)


def scheduled(
    optimizer: Optimizer, schedule: Schedule | None, trainer: Trainer
) -> OptimizerLRScheduler:
    """What ``configure_optimizers`` returns: the optimiser, with the schedule at every step.

    Args:
        optimizer: The optimiser.
        schedule: The factors of its learning rate; None leaves it constant.
        trainer: The run, which knows how long it is.

    Raises:
        ValueError: If there is a schedule and the run has no end.
    """
    if schedule is None:
        return optimizer
    trainer.fit_loop.setup_data()  # counts the batches; does nothing the second time
    total = trainer.estimated_stepping_batches
    if math.isinf(total):
        raise ValueError("a schedule needs an end: set trainer.max_epochs or trainer.max_steps")
    per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    scheduler = lambda_lr(optimizer, schedule, per_epoch, int(total))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class ParameterGroup(TypedDict):
    """What torch's optimisers take as one group; without a decay, the optimiser's own holds."""

    params: list[nn.Parameter]
    weight_decay: NotRequired[float]


Decay = Literal["all", "kernels"]


_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)


def parameter_groups(module: nn.Module, decay: Decay = "kernels") -> list[ParameterGroup]:
    """Splits a module's trainable parameters into those with and those without weight decay.

    Args:
        module: The module.
        decay: ``kernels`` gives every bias and every parameter of a normalisation layer a weight
            decay of 0; ``all`` leaves everything to the optimiser's own.

    Returns:
        One or two groups, each parameter once, in the module's order; an empty group is left out.

    Raises:
        ValueError: If ``decay`` is neither of the two, or the module has nothing to train.
    """
    if decay not in ("all", "kernels"):
        raise ValueError(f"decay must be 'all' or 'kernels', got {decay!r}")
    spared: set[nn.Parameter] = set()
    if decay == "kernels":
        for part in module.modules():
            for name, parameter in part.named_parameters(recurse=False):
                if name.endswith("bias") or isinstance(part, _NORMS):
                    spared.add(parameter)
    trained = [p for p in module.parameters() if p.requires_grad]
    if not trained:
        raise ValueError(f"{type(module).__name__} has no parameter that requires a gradient")
    groups: list[ParameterGroup] = [
        {"params": [p for p in trained if p not in spared]},
        {"params": [p for p in trained if p in spared], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
