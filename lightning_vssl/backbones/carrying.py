"""Backbones whose stages pass on more than a map: extra tokens, a second pathway.

The map of a stage is made of what it passes on, and cannot be turned back into it; so these
networks run from the clip, as far as they are asked to.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from torch import Tensor

from lightning_vssl.backbones.base import Backbone


class Mapped(Protocol):
    """What is passed from stage to stage."""

    def as_map(self) -> Tensor:
        """The stage's map, (B, C, T', h, w) or (B, C, h, w)."""


Carried = TypeVar("Carried", bound=Mapped)


class CarryingBackbone(Backbone, Generic[Carried]):
    """A backbone whose stages pass on something of their own; see `Backbone` for its arguments.

    A subclass says in `embed` what the first stage makes of the clip and runs the others in
    `advance`.
    """

    @abstractmethod
    def embed(self, x: Tensor) -> Carried:
        """Runs the first stage, ``stem``.

        Args:
            x: Normalised clip, (B, C, T, H, W), or (B, C, H, W) where ``dims`` is 2.

        Returns:
            What it passes on.

        Raises:
            ValueError: If the network takes no clip of this size.
        """

    @abstractmethod
    def advance(self, name: str, carried: Carried) -> Carried:
        """Runs one of the other stages.

        Args:
            name: One of `stages`, not the first.
            carried: What the stage before passed on.

        Returns:
            What this stage passes on.
        """

    def stage(self, name: str, x: Tensor) -> Tensor:
        """Runs the first stage; the others need what a map does not hold.

        Raises:
            ValueError: If the stage is not the first.
        """
        if name != self.stages[0]:
            raise ValueError(
                f"{type(self).__name__}'s {name} needs more than the map of the stage before it: "
                "call the network, or features()"
            )
        return self.embed(x).as_map()

    def forward(self, x: Tensor) -> Tensor:
        """Runs the whole network.

        Args:
            x: Normalised clip, (B, C, T, H, W), or (B, C, H, W) where ``dims`` is 2.

        Returns:
            The last stage's map, (B, num_features, T', h, w), or (B, num_features, h, w).

        Raises:
            ValueError: If ``x`` has another number of dimensions or a size it does not take.
        """
        last = self.stages[-1]
        return self.features(x, (last,))[last]

    def features(self, x: Tensor, stages: Sequence[str]) -> dict[str, Tensor]:
        """Runs the network as far as needed and returns the maps of the stages named.

        Args:
            x: Normalised clip, (B, C, T, H, W), or (B, C, H, W) where ``dims`` is 2.
            stages: Names out of `stages`, in any order.

        Returns:
            Map of each stage by name, in the order in which the stages run.

        Raises:
            ValueError: If a stage is not one of this network, or ``x`` has another number of
                dimensions or a size it does not take.
        """
        self._check(x)
        self._check_stages(stages)
        last = max(self.stages.index(name) for name in stages)
        carried = self.embed(x)
        found = {self.stages[0]: carried}
        for name in self.stages[1 : last + 1]:
            found[name] = carried = self.advance(name, carried)
        return {name: one.as_map() for name, one in found.items() if name in stages}
