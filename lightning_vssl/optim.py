"""Learning-rate schedules as pure functions of the step, parameter groups, and LARS."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, TypedDict

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.optimizer import ParamsT


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
        warmup_steps: Length of the warm-up in optimiser steps, in place of epochs, where a run is
            counted in steps whatever the data (VITO).
    """

    warmup_epochs: float = 0.0
    final: float = 0.0
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        if self.warmup_epochs < 0 or self.warmup_steps < 0:
            raise ValueError(
                f"warmup_epochs and warmup_steps must be 0 or more, got {self.warmup_epochs} and "
                f"{self.warmup_steps}"
            )
        if self.warmup_epochs and self.warmup_steps:
            raise ValueError(
                f"give warmup_epochs ({self.warmup_epochs}) or warmup_steps "
                f"({self.warmup_steps}), not both"
            )
        if not 0 <= self.final <= 1:
            raise ValueError(f"final must be in [0, 1], got {self.final}")

    def factor(self, step: int, steps_per_epoch: int, total_steps: int) -> float:
        """Gives step / warm-up while warming up, then the cosine.

        Raises:
            ValueError: If the warm-up is as long as the run or longer.
        """
        warmup = self.warmup_steps or self.warmup_epochs * steps_per_epoch
        if warmup > 0 and warmup >= total_steps:
            raise ValueError(
                f"warmup_epochs={self.warmup_epochs}, warmup_steps={self.warmup_steps} is "
                f"{warmup:g} steps, but the run has only {total_steps}; shorten the warm-up or "
                "train longer"
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


@dataclass(frozen=True)
class Geometric(Schedule):
    """Multiplied by the same factor after every epoch, down to ``final`` at the end of the run.

    Epoch e of E runs at ``final`` ** (e / E): torch's ``ExponentialLR``.

    Attributes:
        final: Factor that the epoch after the last one would have, above 0.
    """

    final: float

    def __post_init__(self) -> None:
        if self.final <= 0:
            raise ValueError(f"final must be above 0, got {self.final}")

    def factor(self, step: int, steps_per_epoch: int, total_steps: int) -> float:
        """Gives ``final`` to the share of epochs that are over."""
        return float(self.final ** (step // steps_per_epoch * steps_per_epoch / total_steps))


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
        decay: ``kernels`` gives a weight decay of 0 to every bias, every parameter of a
            normalisation layer, every vector and scalar (layer scale, temperatures),
            every table of relative position biases (Swin), and whatever a part's own
            ``no_weight_decay()`` names, as timm's networks have it; ``all`` leaves everything to
            the optimiser's own.

    Returns:
        One or two groups, each parameter once, in the module's order; an empty group is left out.

    Raises:
        ValueError: If ``decay`` is neither of the two, or the module has nothing to train.
    """
    if decay not in ("all", "kernels"):
        raise ValueError(f"decay must be 'all' or 'kernels', got {decay!r}")
    spared = _spared(module) if decay == "kernels" else set()
    trained = [p for p in module.parameters() if p.requires_grad]
    if not trained:
        raise ValueError(f"{type(module).__name__} has no parameter that requires a gradient")
    groups: list[ParameterGroup] = [
        {"params": [p for p in trained if p not in spared]},
        {"params": [p for p in trained if p in spared], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _spared(module: nn.Module) -> set[nn.Parameter]:
    """The parameters that ``kernels`` leaves without weight decay."""
    spared: set[nn.Parameter] = set()
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            small = parameter.ndim <= 1 or name.endswith(("bias", "bias_table"))
            if small or isinstance(part, _NORMS):
                spared.add(parameter)
        own = getattr(part, "no_weight_decay", None)
        if callable(own):
            named = tuple(own())  # of parameters, or of modules (Swin v2)
            for name, parameter in part.named_parameters():
                if any(name == one or name.startswith(f"{one}.") for one in named):
                    spared.add(parameter)
    return spared


class LARS(Optimizer):
    """Layer-wise adaptive rates (You et al., 2017) as BYOL defines them.

    For each parameter p with gradient g, step by step: ``u = g + weight_decay * p``, then
    ``u = trust * |p| / |u| * u`` unless a norm is 0, then ``m = momentum * m + u`` and
    ``p = p - lr * m``. A group that sets a weight decay of 0 of its own, as `parameter_groups` does
    for biases and normalisation layers, is kept out of the second step too: plain momentum.

    timm's divides by ``|g| + weight_decay * |p|`` instead of ``|u|``, which gives shorter steps
    where gradient and decay point apart, and adapts nothing where the decay is 0.

    Args:
        params: Parameters, or groups of them.
        lr: Learning rate.
        momentum: Share of the last update that is kept, in [0, 1).
        weight_decay: Decay of all groups that set none of their own.
        trust: Trust coefficient, the length of an update over that of its parameter at lr 1.

    Raises:
        ValueError: If a number is outside its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.3,
        momentum: float = 0.9,
        weight_decay: float = 1e-6,
        trust: float = 1e-3,
    ) -> None:
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if value < 0:
                raise ValueError(f"{name} must be 0 or more, got {value}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        if trust <= 0:
            raise ValueError(f"trust must be above 0, got {trust}")
        super().__init__(
            params,
            {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust},
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group; one that sets ``weight_decay`` to 0 is not adapted (``adapt`` is False)."""
        param_group.setdefault("adapt", param_group.get("weight_decay") != 0)
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Updates every parameter that has a gradient.

        Args:
            closure: Computes the loss and the gradients anew; None takes those that are there.

        Returns:
            The closure's loss, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(group, params)
        return loss

    def _update(self, group: dict[str, Any], params: list[Tensor]) -> None:
        grads = [p.grad for p in params if p.grad is not None]
        updates = torch._foreach_add(grads, params, alpha=group["weight_decay"])
        if group["adapt"]:
            ratios = [
                torch.where((p > 0) & (u > 0), group["trust"] * p / u, 1.0)
                for p, u in zip(
                    torch._foreach_norm(params), torch._foreach_norm(updates), strict=True
                )
            ]
            torch._foreach_mul_(updates, ratios)
        moments = []
        for p in params:
            state = self.state[p]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(p)
            moments.append(state["momentum_buffer"])
        torch._foreach_mul_(moments, group["momentum"])
        torch._foreach_add_(moments, updates)
        torch._foreach_add_(params, moments, alpha=-group["lr"])
