"""Projection heads."""

import itertools
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with ReLU between them, and batch norm before each ReLU if wanted.

    The papers' heads in these terms (C is the backbone's width):

    - RSPNet, PreViTS and MoCo v1 (facts: one linear layer): ``MLP(C, (), 128)``
    - MoCo v2: ``MLP(C, (C,), 128)``
    - CVRL, ConST-CL: ``MLP(C, (2048, 2048, 2048), 128, norm="batch")``; the released CVRL code has
      biases before its norms, ConST-CL's has none (``bias=False``)
    - BYOL, VITO: ``MLP(C, (4096,), 256, norm="batch", output_bias=False)``

    The output is not L2-normalised: the losses do that, in float32.

    Args:
        in_features: Width of the input.
        hidden: Width of each hidden layer; none makes a single linear layer.
        out_features: Width of the output.
        norm: ``"batch"`` puts a BatchNorm1d after every hidden linear layer.
        bias: Whether the hidden linear layers have a bias.
        output_bias: Whether the last linear layer has one.

    Raises:
        ValueError: If a width is not positive or ``norm`` is neither value.
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int] = (),
        out_features: int = 128,
        norm: Literal["none", "batch"] = "none",
        bias: bool = True,
        output_bias: bool = True,
    ) -> None:
        super().__init__()
        widths = [in_features, *hidden, out_features]
        if min(widths) < 1:
            raise ValueError(f"All widths must be at least 1; got {widths}.")
        if norm not in ("none", "batch"):
            raise ValueError(f'norm must be "none" or "batch"; got {norm!r}.')
        self.in_features = in_features
        self.hidden = tuple(hidden)
        self.out_features = out_features
        self.norm = norm
        self.bias = bias
        self.output_bias = output_bias
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths[:-1]):
            layers.append(nn.Linear(before, after, bias=bias))
            if norm == "batch":
                layers.append(nn.BatchNorm1d(after))
            layers.append(nn.ReLU(inplace=True))
        layers.append(nn.Linear(widths[-2], out_features, bias=output_bias))
        self.layers = nn.Sequential(*layers)

    @property
    def config(self) -> dict[str, object]:
        """Class and arguments that rebuild this module, as plain data."""
        return {
            "class_path": f"{type(self).__module__}.{type(self).__qualname__}",
            "init_args": {
                "in_features": self.in_features,
                "hidden": list(self.hidden),
                "out_features": self.out_features,
                "norm": self.norm,
                "bias": self.bias,
                "output_bias": self.output_bias,
            },
        }

    def forward(self, x: Tensor) -> Tensor:
        """Projects pooled features.

        Args:
            x: (B, in_features); without batch norm any leading shape will do.

        Returns:
            (B, out_features).

        Raises:
            ValueError: If the last dimension of ``x`` is not ``in_features``.
        """
        if x.shape[-1] != self.in_features:
            raise ValueError(
                f"The head takes vectors of {self.in_features} numbers; got shape {tuple(x.shape)}."
                " Pool the backbone's map first."
            )
        out: Tensor = self.layers(x)
        return out
