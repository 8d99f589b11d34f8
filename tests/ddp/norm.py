"""Batch norm that sees the global batch on CPU, where torch's SyncBatchNorm refuses to run."""

import torch
from torch import Tensor, nn

from lightning_vssl.nn.gather import all_reduce_sum


class GlobalBatchNorm(nn.Module):
    """Train-mode batch norm for any number of dimensions; its moments are summed over ranks."""

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        dims = [d for d in range(x.ndim) if d != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        count = all_reduce_sum(torch.tensor(float(x.numel() // x.shape[1]), dtype=x.dtype))
        mean = (all_reduce_sum(x.sum(dims)) / count).view(shape)
        variance = (all_reduce_sum((x - mean).square().sum(dims)) / count).view(shape)
        out = (x - mean) / (variance + self.eps).sqrt()
        return out * self.weight.view(shape) + self.bias.view(shape)


def swap_norms(module: nn.Module) -> nn.Module:
    """Replaces every batch norm below ``module`` by a `GlobalBatchNorm` with its parameters."""
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            setattr(module, name, GlobalBatchNorm(child))
        else:
            swap_norms(child)
    return module
