"""Grad-CAM: the fast form against double backward, the closed form and loops, all in float64."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_vssl.losses.attention import attention_loss
from lightning_vssl.nn.grad_cam import (
    channel_weights,
    channel_weights_through_maps,
    explain,
    explain_layer,
    grad_cam,
    guided_grad_cam,
    guided_gradients,
    likeness_cam,
    minmax_cam,
    resize_cam,
)
from lightning_vssl.nn.heads import MLP

BATCH, CHANNELS, DIM = 4, 6, 5
HEADS = {
    "linear": lambda: MLP(CHANNELS, (), DIM),
    "mlp": lambda: MLP(CHANNELS, (7, 9), DIM),
    "smooth": lambda: nn.Sequential(nn.Linear(CHANNELS, 7), nn.GELU(), nn.Linear(7, DIM)),
    "norm": lambda: MLP(CHANNELS, (7,), DIM, norm="batch"),
}


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def make(head: str, dims: int) -> tuple[nn.Module, nn.Module, Tensor]:
    """A small network with batch norm, a head, and pixels."""
    torch.manual_seed(0)
    conv, norm = (nn.Conv3d, nn.BatchNorm3d) if dims == 3 else (nn.Conv2d, nn.BatchNorm2d)
    network = nn.Sequential(
        conv(3, 5, 3, padding=1, stride=2),
        norm(5),
        nn.ReLU(inplace=True),
        conv(5, CHANNELS, 3, padding=1),
        norm(CHANNELS),
        nn.ReLU(inplace=True),
    ).double()
    pixels = draw(BATCH, 3, *((4, 10, 12) if dims == 3 else (10, 12)), seed=1)
    return network, HEADS[head]().double(), pixels


def loss_of(
    network: nn.Module, head: nn.Module, pixels: Tensor, form: str, cam: str
) -> tuple[Tensor, Tensor, Tensor]:
    """PreViTS's attention loss on a fixed key, by one of the two forms."""
    maps = network(pixels)
    pooled = maps.flatten(2).mean(2)
    query = F.normalize(head(pooled), dim=1)
    score = (query * F.normalize(draw(BATCH, DIM, seed=2), dim=1)).sum(1) / 0.07
    if form == "fast":
        weights = channel_weights(score, pooled, maps[0, 0].numel(), create_graph=True)
    else:
        weights = channel_weights_through_maps(score, maps, create_graph=True)
    found = (grad_cam if cam == "relu" else minmax_cam)(maps, weights)
    target = draw(*found.shape, seed=3).clamp(min=0)
    valid = torch.tensor([True, True, False, True])
    return attention_loss(found, target, valid), found, weights


def worst(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max())


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("cam", ["relu", "minmax"])
def test_fast_form_equals_double_backward(head: str, dims: int, cam: str) -> None:
    network, projector, pixels = make(head, dims)
    twin = copy.deepcopy(nn.ModuleList([network, projector]))
    fast, fast_cam, fast_weights = loss_of(network, projector, pixels, "fast", cam)
    slow, slow_cam, slow_weights = loss_of(twin[0], twin[1], pixels, "double", cam)
    fast.backward()
    slow.backward()
    assert worst(fast_weights, slow_weights) <= 1e-12
    assert worst(fast_cam, slow_cam) <= 1e-12
    assert abs(fast.item() - slow.item()) <= 1e-12
    assert fast_cam.any()
    largest = 0.0
    mine = nn.ModuleList([network, projector])
    for (name, one), two in zip(mine.named_parameters(), twin.parameters(), strict=True):
        if one.grad is None or two.grad is None:  # the last bias moves no derivative
            assert one.grad is None or not one.grad.any(), name
            assert two.grad is None or not two.grad.any(), name
            continue
        assert worst(one.grad, two.grad) <= 1e-12, name
        largest = max(largest, one.grad.abs().max().item())
    assert largest > 1e-3


@pytest.mark.parametrize("form", ["fast", "double"])
def test_gradients_equal_finite_differences(form: str) -> None:
    # Neither form of autograd: the loss itself, moved along each of some parameters.
    network, projector, pixels = make("smooth", 3)
    parts = nn.ModuleList([network, projector])
    loss_of(network, projector, pixels, form, "relu")[0].backward()
    step = 1e-6
    for name, number in [
        ("0.0.weight", 17),
        ("0.3.weight", 40),
        ("0.4.bias", 2),
        ("1.0.weight", 9),
    ]:
        parameter = dict(parts.named_parameters())[name]
        assert parameter.grad is not None
        sides = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.view(-1)[number] += sign * step
            sides.append(loss_of(network, projector, pixels, form, "relu")[0].item())
            with torch.no_grad():
                parameter.view(-1)[number] -= sign * step
        slope = (sides[0] - sides[1]) / (2 * step)
        assert parameter.grad.view(-1)[number].item() == pytest.approx(slope, abs=1e-7), name
        assert abs(slope) > 1e-5, name


def test_gradient_goes_through_the_weights_too() -> None:
    network, projector, pixels = make("linear", 3)
    loss_of(network, projector, pixels, "fast", "relu")[0].backward()
    assert projector.layers[0].weight.grad.abs().max() > 1e-3


def test_weights_equal_the_closed_form() -> None:
    # alpha = W' (k - (q.k) q) / (|z| t N): the derivative of a cosine behind a linear head
    torch.manual_seed(0)
    head = nn.Linear(CHANNELS, DIM).double()
    maps, key = draw(3, CHANNELS, 2, 3, 3), F.normalize(draw(3, DIM, seed=1), dim=1)
    pooled = maps.mean((2, 3, 4)).requires_grad_()
    z = head(pooled)
    score = (F.normalize(z, dim=1) * key).sum(1) / 0.07
    found = channel_weights(score, pooled, 18)
    assert not found.requires_grad
    for b in range(3):
        length = math.sqrt(sum(v * v for v in z[b].tolist()))
        q = [v / length for v in z[b].tolist()]
        dot = sum(x * y for x, y in zip(q, key[b].tolist(), strict=True))
        away = [(k - dot * v) / length / 0.07 / 18 for k, v in zip(key[b].tolist(), q, strict=True)]
        for c in range(CHANNELS):
            expected = sum(away[d] * head.weight[d, c].item() for d in range(DIM))
            assert found[b, c].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("space", [(3, 4), (2, 3, 4)])
def test_maps_equal_loops(space: tuple[int, ...]) -> None:
    maps, weights = draw(2, 3, *space), draw(2, 3, seed=1)
    relu, minmax = grad_cam(maps, weights), minmax_cam(maps, weights)
    assert relu.shape == minmax.shape == (2, *space)
    for b in range(2):
        sums = [
            sum(weights[b, c].item() * maps[b, c].flatten()[n].item() for c in range(3))
            for n in range(math.prod(space))
        ]
        low, high = min(sums), max(sums)
        assert low < 0 < high
        expected = torch.tensor([max(0.0, s) for s in sums], dtype=torch.float64)
        assert worst(relu[b].flatten(), expected) <= 1e-14
        expected = torch.tensor([(s - low) / (high - low + 1e-7) for s in sums]).double()
        assert worst(minmax[b].flatten(), expected) <= 1e-6


def test_maps_are_float32_under_autocast() -> None:
    maps, weights = torch.randn(2, 64, 3, 3), torch.randn(2, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
        found = grad_cam(maps, weights)
        half = grad_cam(maps.bfloat16(), weights)
    assert found.dtype == half.dtype == torch.float32
    assert torch.equal(found, grad_cam(maps, weights))
    assert worst(found, torch.einsum("bchw,bc->bhw", maps, weights).relu()) < 1e-5


def test_a_constant_map_is_zeros_by_minmax() -> None:
    assert not minmax_cam(torch.ones(2, 3, 4, 4), torch.ones(2, 3)).any()


def test_explain_equals_the_trained_form_and_runs_in_inference_mode() -> None:
    head = MLP(CHANNELS, (7,), DIM).double()
    maps, key = draw(3, CHANNELS, 2, 4, 4), draw(3, DIM, seed=1)
    graph = maps.clone().requires_grad_()
    pooled = graph.mean((2, 3, 4))
    score = (head(pooled) * key).sum(1)
    expected = grad_cam(graph, channel_weights(score, pooled, 32)).detach()
    with torch.inference_mode():
        made, other = maps * 1, key * 1  # inference tensors, as in a validation step
        found, scores = explain(made, lambda x: (head(x) * other.clone()).sum(1))
    assert worst(found, expected) <= 1e-14
    assert worst(scores, score.detach()) <= 1e-14
    assert (found == 0).any()  # what speaks against the score is cut off
    assert head.layers[0].weight.grad is None


@pytest.mark.parametrize("each", [1, 3])
def test_a_layer_of_any_network_is_explained(each: int) -> None:
    # Positions are weighed by a softmax here: the derivative differs from place to place.
    torch.manual_seed(0)
    layer, attend, head = (
        nn.Conv2d(3, CHANNELS, 3),
        nn.Conv2d(CHANNELS, 1, 1),
        MLP(CHANNELS, (7,), 1),
    )
    for part in (layer, attend, head):
        part.double().requires_grad_(False)

    def after(maps: Tensor) -> Tensor:
        weights = attend(maps).flatten(2).softmax(2)
        vectors = (maps.flatten(2) * weights).sum(2)
        return head(vectors)[:, 0].view(-1, each).sum(1)

    pixels = draw(2, each, 3, 7, 8)
    with torch.inference_mode():
        found, scores = explain_layer(layer, pixels * 1, lambda x: after(layer(x.flatten(0, 1))))
    maps = layer(pixels.flatten(0, 1)).requires_grad_()
    (slope,) = torch.autograd.grad(after(maps).sum(), maps)
    expected = torch.stack(
        [
            sum(slope[n, c].mean() * maps[n, c].detach() for c in range(CHANNELS))
            for n in range(2 * each)
        ]
    )
    expected = expected if each == 1 else expected.view(2, 3, 5, 6)
    assert (expected < 0).any()
    assert worst(found, expected.relu()) <= 1e-12
    assert found.any()
    assert worst(scores, after(maps)) <= 1e-12
    assert not layer._forward_hooks
    with pytest.raises(ValueError, match="must run once"):
        explain_layer(layer, pixels, lambda x: x.flatten(1).sum(1))
    assert not layer._forward_hooks


class Chain(nn.Module):
    """ReLUs in all the ways in which networks write them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 3)])
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.layers[0](x))
        x = self.layers[1](x)
        x.relu_()
        return torch.relu(self.layers[2](x)) + F.relu(x[:, :2, 1:-1, 1:-1], inplace=False).relu()


def test_guided_gradients_equal_a_hand_written_backward_pass() -> None:
    torch.manual_seed(0)
    chain = Chain().double().requires_grad_(False)
    pixels = draw(2, 3, 9, 9)
    w = [layer.weight for layer in chain.layers]

    def guided(gradient: Tensor, out: Tensor) -> Tensor:
        return gradient.clamp(min=0) * (out > 0)

    a = chain.layers[0](pixels).clamp(min=0)
    b = chain.layers[1](a).clamp(min=0)
    c = chain.layers[2](b).clamp(min=0)
    start = torch.ones_like(c)
    top = F.conv_transpose2d(guided(start, c), w[2])
    direct = guided(guided(start, b[:, :2, 1:-1, 1:-1]), b[:, :2, 1:-1, 1:-1])
    top[:, :2, 1:-1, 1:-1] += direct
    expected = F.conv_transpose2d(guided(F.conv_transpose2d(guided(top, b), w[1]), a), w[0])
    with torch.inference_mode():
        found = guided_gradients(pixels, lambda x: chain(x).sum((1, 2, 3)))
    assert worst(found, expected) <= 1e-12
    plain = pixels.clone().requires_grad_()
    chain(plain).sum().backward()
    assert worst(plain.grad, expected) > 1e-2  # guided gradients are not gradients
    assert torch.equal(chain(pixels), chain(pixels.clone()))


@pytest.mark.parametrize("space", [(2, 2), (2, 2, 2)])
def test_guided_grad_cam_is_the_product_with_the_scaled_map(space: tuple[int, ...]) -> None:
    cam = draw(2, *space).abs()
    size = tuple(4 * s for s in space)
    large = resize_cam(cam, size)
    assert large.shape == (2, *size)
    centre = large[(slice(None), *(slice(None, None, 2),) * len(space))]
    assert worst(resize_cam(torch.ones(1, *space), size), torch.ones(1, *size)) < 1e-6
    assert centre.min() >= cam.min() - 1e-12
    gradients = draw(2, 3, *size, seed=1)
    found = guided_grad_cam(gradients, cam)
    for channel in range(3):
        assert torch.equal(found[:, channel], gradients[:, channel] * large)


def test_refused() -> None:
    pooled = torch.randn(2, 3, requires_grad=True)
    score = pooled.sum(1)
    with pytest.raises(ValueError, match="positions"):
        channel_weights(score, pooled, 0)
    with pytest.raises(ValueError, match="pooled must be"):
        channel_weights(score, pooled[..., None], 1)
    with pytest.raises(ValueError, match="require a gradient"):
        channel_weights(score.detach(), pooled, 1)
    with pytest.raises(ValueError, match="not computed from pooled"):
        channel_weights(score, torch.randn(2, 3, requires_grad=True), 1)
    with pytest.raises(ValueError, match="of the same B"):
        channel_weights(score.sum(), pooled, 1)
    with pytest.raises(ValueError, match="maps must be"):
        grad_cam(torch.rand(2, 3), torch.rand(2, 3))
    with pytest.raises(ValueError, match="weights"):
        grad_cam(torch.rand(2, 3, 4, 4), torch.rand(2, 4))
    with pytest.raises(ValueError, match="cam must be"):
        resize_cam(torch.rand(2, 3, 3), (4, 4, 4))
    with pytest.raises(ValueError, match="maps must be"):
        explain(torch.rand(2, 3), lambda x: x.sum(1))
    with pytest.raises(ValueError, match="score must give"):
        guided_gradients(torch.rand(2, 3, 4, 4), lambda x: x)


def test_the_cam_of_a_likeness_is_that_of_the_cosine_by_double_backward() -> None:
    torch.manual_seed(1)
    maps = torch.rand(BATCH, CHANNELS, 3, 4, dtype=torch.float64)
    head = HEADS["mlp"]().double().eval()
    codes = F.normalize(torch.randn(BATCH, DIM, dtype=torch.float64), dim=1)
    own = maps.clone().requires_grad_()
    cosine = F.cosine_similarity(head(own.mean((2, 3))), codes, dim=1)
    slopes = torch.autograd.grad(cosine.sum(), own)[0].mean((2, 3))
    wanted = (maps * slopes[:, :, None, None]).sum(1).clamp(min=0)
    with torch.inference_mode():  # where a test step runs
        found = likeness_cam(maps, head, codes * 1.0)
        one = likeness_cam(maps[:1], head, codes[:1])
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(one, wanted[:1])
    assert wanted.count_nonzero() > 0
