"""Where a score comes from: Grad-CAM, guided gradients and their product.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization" (ICCV 2017). A map of features is averaged over its channels, each weighted by how
much the score grows with it; what is positive is what speaks for the score. PreViTS (section 3.3,
Eq. 3 and 4) trains these maps, so that they must themselves be differentiable.

In all networks here the head sees the *average* of the map over its N positions. Then the
derivative of the score by the map is the same at every position, namely that by the average over
N: `channel_weights` differentiates through the head alone and makes no gradient of the map's size.
`channel_weights_through_maps` is the general form, equal where both apply (see
tests/nn/test_grad_cam.py). Neither goes back into the backbone: what is trained is differentiated
once through it, by the loss.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_VOID = 255


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _differentiate(
    score: Tensor, by: Tensor, name: str, create_graph: bool, each: int = 1
) -> Tensor:
    if score.dim() != 1 or by.dim() < 2 or len(score) * each != len(by):
        raise ValueError(
            f"score must be (B,) and {name} (B, C, ...) of the same B; got {tuple(score.shape)} "
            f"and {tuple(by.shape)}"
        )
    if not (score.requires_grad and by.requires_grad):
        raise ValueError(
            f"score and {name} must require a gradient; they do not, as under torch.no_grad or in "
            "validation. Use lightning_vssl.nn.grad_cam.explain, which works there too"
        )
    total = score.sum()
    found = torch.autograd.grad(
        total, by, create_graph=create_graph, retain_graph=True, allow_unused=True
    )[0]
    if found is None:
        raise ValueError(f"score was not computed from {name}: pass the very tensor the head took")
    return _wide(found)


def channel_weights(
    score: Tensor, pooled: Tensor, positions: int, create_graph: bool = False
) -> Tensor:
    """Weight of every channel, from the derivative by the pooled vector (PreViTS, Eq. 3).

    Differs from the paper, whose sum over positions is here the mean, as in Grad-CAM and in the
    released code; under a cosine the factor does not matter. A head with batch norm mixes the
    samples of a batch: then it is the derivative of the sum of all scores.

    Args:
        score: One number for each sample, (B,), computed from ``pooled``.
        pooled: Average of the map over its positions, (B, C), the very tensor that the head took.
        positions: Number N of positions of the map, T' h' w' or h' w'.
        create_graph: Whether the weights shall be differentiable, for training.

    Returns:
        (B, C) float32 or float64.

    Raises:
        ValueError: If the shapes do not fit, ``positions`` is below 1, or ``score`` carries no
            gradient to ``pooled``.
    """
    if positions < 1:
        raise ValueError(f"positions must be at least 1; got {positions}")
    if pooled.dim() != 2:
        raise ValueError(f"pooled must be (B, C); got {tuple(pooled.shape)}")
    return _differentiate(score, pooled, "pooled", create_graph) / positions


def channel_weights_through_maps(score: Tensor, maps: Tensor, create_graph: bool = False) -> Tensor:
    """Weight of every channel, the mean over positions of the derivative by the map.

    The form that holds for any head, also for one that does not average. With ``create_graph`` it
    costs a second backward pass through whatever lies between the map and the score.

    Args:
        score: One number for each sample, (B,), computed from ``maps``.
        maps: (B, C, *S), the very tensor that was pooled.
        create_graph: Whether the weights shall be differentiable, for training.

    Returns:
        (B, C) float32 or float64.

    Raises:
        ValueError: If the shapes do not fit or ``score`` carries no gradient to ``maps``.
    """
    return _differentiate(score, maps, "maps", create_graph).flatten(2).mean(2)


def _weighted(maps: Tensor, weights: Tensor) -> Tensor:
    if maps.dim() < 3 or weights.shape != maps.shape[:2]:
        raise ValueError(
            f"maps must be (B, C, *S) and weights (B, C); got {tuple(maps.shape)} and "
            f"{tuple(weights.shape)}"
        )
    with torch.autocast(maps.device.type, enabled=False):
        return torch.einsum("bc...,bc->b...", _wide(maps), _wide(weights).to(_wide(maps)))


def grad_cam(maps: Tensor, weights: Tensor) -> Tensor:
    """What of the map speaks for the score (Grad-CAM, Eq. 2; PreViTS, Eq. 4).

    Args:
        maps: (B, C, *S), with S two or three sizes.
        weights: (B, C), of `channel_weights`.

    Returns:
        ReLU of the weighted sum over channels, (B, *S), float32 whatever the autocast (float64
        stays float64). A sample for which nothing speaks has a map of zeros.

    Raises:
        ValueError: If the shapes do not fit.
    """
    return _weighted(maps, weights).relu()


def minmax_cam(maps: Tensor, weights: Tensor, eps: float = 1e-7) -> Tensor:
    """The weighted sum brought to [0, 1] for each sample, as PreViTS's released code does.

    It replaces the ReLU of `grad_cam`: positions that speak against the score are then small
    positive numbers instead of zeros. The gradient also goes through minimum and maximum.

    Args:
        maps: (B, C, *S).
        weights: (B, C).
        eps: Added to the range, so that a constant map becomes zeros.

    Returns:
        (B, *S) float32 or float64.

    Raises:
        ValueError: If the shapes do not fit.
    """
    found = _weighted(maps, weights)
    over = tuple(range(1, found.dim()))
    low, high = found.amin(over, keepdim=True), found.amax(over, keepdim=True)
    return (found - low) / (high - low + eps)


def explain(maps: Tensor, score: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Grad-CAM of a finished map, outside of training: no gradient is kept.

    Works under ``torch.no_grad`` and in inference mode, where a validation step runs.

    Args:
        maps: (B, C, *S), of any dtype.
        score: From the average over positions, (B, C) float32, to one number for each sample,
            (B,). Tensors that it uses from a validation step must be cloned in it
            (``key.clone()``), which inference mode demands.

    Returns:
        The map (B, *S) and the scores (B,), float32 or float64.

    Raises:
        ValueError: If a shape does not fit.
    """
    if maps.dim() < 3:
        raise ValueError(f"maps must be (B, C, *S); got {tuple(maps.shape)}")
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(maps.device.type, enabled=False),
    ):
        own = _wide(maps.detach()).clone()
        pooled = own.flatten(2).mean(2).requires_grad_()
        scores = score(pooled)
        weights = channel_weights(scores, pooled, own[0, 0].numel())
        found = grad_cam(own, weights)
    return found.detach(), scores.detach()


def explain_layer(
    layer: nn.Module, inputs: Tensor, score: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Grad-CAM of a layer's map in any network, whatever follows it; no gradient is kept.

    Works under ``torch.no_grad`` and in inference mode. Put the network into eval mode first.

    Args:
        layer: Gives one map (B, C, *S) each time it runs, and runs once within ``score``. An image
            network that sees the n frames of a clip as n pictures gives (B * n, C, *S), the frames
            of a clip one after the other.
        inputs: What ``score`` takes, (B, ...), float.
        score: Runs the network and gives one number for each sample, (B,).

    Returns:
        The map (B, *S), or (B, n, *S), and the scores (B,).

    Raises:
        ValueError: If the layer did not run exactly once, or the score carries no gradient to it.
    """
    found: list[Tensor] = []
    handle = layer.register_forward_hook(lambda module, args, out: found.append(out))
    try:
        with torch.inference_mode(False), torch.enable_grad():
            scores = score(inputs.detach().clone().requires_grad_())
            if len(found) != 1 or len(found[0]) % len(inputs):
                raise ValueError(
                    f"the layer must run once, on {len(inputs)} samples or as many frames of each; "
                    f"it gave maps {[tuple(maps.shape) for maps in found]}"
                )
            maps = found[0]
            each = len(maps) // len(inputs)
            weights = _differentiate(scores, maps, "maps", False, each).flatten(2).mean(2)
            cam = grad_cam(maps, weights).detach()
    finally:
        handle.remove()
    cam = cam if each == 1 else cam.view(-1, each, *cam.shape[1:])
    return cam, scores.detach()


def resize_cam(cam: Tensor, size: tuple[int, ...]) -> Tensor:
    """Scales maps to the size of the pixels they were made from, linearly between centres.

    Args:
        cam: (B, h, w) or (B, T', h, w).
        size: (H, W) or (T, H, W), as many as the map has.

    Returns:
        (B, *size) float32 or float64.

    Raises:
        ValueError: If map and size have different numbers of dimensions.
    """
    if cam.dim() not in (3, 4) or len(size) != cam.dim() - 1:
        raise ValueError(
            f"cam must be (B, h, w) with size (H, W), or (B, T', h, w) with (T, H, W); got "
            f"{tuple(cam.shape)} and {size}"
        )
    mode = "bilinear" if len(size) == 2 else "trilinear"
    return F.interpolate(_wide(cam)[:, None], size=size, mode=mode, align_corners=False)[:, 0]


def key_foreground(views: Tensor, mask: Tensor) -> Tensor:
    """The object alone: everything else becomes the mean colour (PreViTS, section 3.3).

    Args:
        views: Normalised, (B, 3, T, H, W).
        mask: (B, T, h, w), or (B, 1, h, w) for all frames: 0 background, 255 void, else object.

    Returns:
        Of the shape of ``views``.
    """
    there = ((mask != 0) & (mask != _VOID)).to(views.dtype)
    large = F.interpolate(there, size=views.shape[-2:], mode="nearest-exact")
    return views * large[:, None]


def likeness_cam(maps: Tensor, head: nn.Module, codes: Tensor) -> Tensor:
    """Where queries speak for their likeness to a key each (PreViTS, section 4.5); see `explain`.

    Args:
        maps: Of the queries, (B, C, *S).
        head: From pooled features (B, C) to (B, D), in eval mode.
        codes: Unit vectors of the keys, (B, D), or (1, D) for all queries.

    Returns:
        Grad-CAM of the cosine of the head's output and the code, (B, *S).
    """

    def score(pooled: Tensor) -> Tensor:
        return (F.normalize(head(pooled), dim=1) * codes.clone()).sum(1)

    return explain(maps, score)[0]


class _GuidedReLU(torch.autograd.Function):
    """ReLU whose backward pass also drops negative gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ANN401 (torch's context has no type)
        out: Tensor = x.clamp(min=0)
        ctx.save_for_backward(out > 0)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ANN401
        (alive,) = ctx.saved_tensors
        passed: Tensor = grad.clamp(min=0) * alive
        return passed


_RELUS = (F.relu, torch.relu, Tensor.relu)
_RELUS_IN_PLACE = (F.relu_, torch.relu_, Tensor.relu_)


class _Guided(TorchFunctionMode):
    """Puts `_GuidedReLU` in place of every ReLU that runs under it, module or function."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        options = dict(kwargs or {})
        if func in _RELUS or func in _RELUS_IN_PLACE:
            x = args[0] if args else options["input"]
            within = args[1] if len(args) > 1 else options.get("inplace", False)
            out = _GuidedReLU.apply(x)  # type: ignore[no-untyped-call]
            return x.copy_(out) if within or func in _RELUS_IN_PLACE else out
        return func(*args, **options)


def guided_gradients(pixels: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    """Guided backpropagation: which pixels raise the score (Springenberg et al. 2015).

    A gradient passes a ReLU only where the activation and the gradient are positive. Every ReLU
    that ``score`` runs is replaced, be it a module or a function, in place or not; other
    activations (GELU, SiLU) keep their own derivative. Works under ``torch.no_grad`` and in
    inference mode. Put the network into eval mode first: a batch norm in training mixes samples.

    Args:
        pixels: Normalised, (B, 3, H, W) or (B, 3, T, H, W).
        score: Runs the network and gives one number for each sample, (B,).

    Returns:
        Derivative of the score by the pixels, of the shape of ``pixels``.

    Raises:
        ValueError: If ``score`` does not give (B,) with a gradient.
    """
    with torch.inference_mode(False), torch.enable_grad():
        own = pixels.detach().clone().requires_grad_()
        with _Guided():
            scores = score(own)
        if scores.shape != own.shape[:1] or not scores.requires_grad:
            raise ValueError(
                f"score must give ({len(own)},) numbers computed from the pixels; got "
                f"{tuple(scores.shape)}"
            )
        return torch.autograd.grad(scores.sum(), own)[0]


def guided_grad_cam(gradients: Tensor, cam: Tensor) -> Tensor:
    """Guided Grad-CAM: gradients of pixels where Grad-CAM is (Grad-CAM, section 3.2).

    Args:
        gradients: (B, 3, H, W) or (B, 3, T, H, W), of `guided_gradients`.
        cam: (B, h, w) or (B, T', h, w).

    Returns:
        Their product, the map scaled to the pixels' size, of the shape of ``gradients``.

    Raises:
        ValueError: If the numbers of dimensions do not fit.
    """
    return gradients * resize_cam(cam, tuple(gradients.shape[2:]))[:, None]
