"""RoI pooling against bilinear samples by hand; ConST-CL's head against its formulas in loops."""

import math

import pytest
import torch
from torch import Tensor

from lightning_vssl.nn.regions import RegionDecoder, context_frames, pool_regions


def bilinear(channel: list[list[float]], y: float, x: float) -> float:
    """The value at (y, x), voxel centres at integers; beyond the last voxel, the last."""
    height, width = len(channel), len(channel[0])
    y, x = min(y, height - 1), min(x, width - 1)
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    v, u = y - y0, x - x0
    top = channel[y0][x0] * (1 - u) + channel[y0][x1] * u
    bottom = channel[y1][x0] * (1 - u) + channel[y1][x1] * u
    return top * (1 - v) + bottom * v


def slow_pool(channel: Tensor, box: Tensor) -> float:
    rows = channel.tolist()
    height, width = len(rows), len(rows[0])
    x1, y1, x2, y2 = box.tolist()
    total = 0.0
    for i in range(4):
        for j in range(4):
            y = (y1 + (y2 - y1) * (i + 0.5) / 4) * height
            x = (x1 + (x2 - x1) * (j + 0.5) / 4) * width
            total += bilinear(rows, y, x)
    return total / 16


def test_pooling_equals_bilinear_samples_by_hand() -> None:
    torch.manual_seed(0)
    maps = torch.randn(2, 3, 7, 5, dtype=torch.float64)
    corner, side = torch.rand(2, 6, 2), torch.rand(2, 6, 2) * 0.5
    boxes = torch.cat([corner, (corner + side).clamp(max=0.999)], dim=-1).double()
    boxes[0, 0] = torch.tensor([0.0, 0.0, 1.0, 1.0])
    boxes[0, 1] = torch.tensor([0.5, 0.5, 0.52, 0.51])  # under a voxel in both directions
    found = pool_regions(maps, boxes)
    assert found.shape == (2, 6, 3)
    for b in range(2):
        for n in range(6):
            for c in range(3):
                expected = slow_pool(maps[b, c], boxes[b, n])
                assert found[b, n, c].item() == pytest.approx(expected, abs=1e-12)


def test_a_ramp_gives_the_centre_of_the_box() -> None:
    ramp = torch.arange(7.0).expand(1, 1, 7, 7)  # the value is x in voxels
    boxes = torch.tensor([[[0.2, 0.1, 0.6, 0.9], [0.3, 0.3, 0.31, 0.31]]])
    assert pool_regions(ramp, boxes)[0, :, 0].tolist() == pytest.approx([2.8, 2.135], abs=1e-6)


def test_a_change_of_order_changes_only_the_order() -> None:
    torch.manual_seed(0)
    maps, context = torch.randn(2, 6, 7, 7), torch.randn(2, 6, 3, 7, 7)
    corner = torch.rand(2, 5, 2) * 0.5
    boxes = torch.cat([corner, corner + 0.3], dim=-1)
    order = torch.tensor([3, 0, 4, 1, 2])
    head = RegionDecoder(6, hidden=8, position="query_and_memory")

    def made(some: Tensor) -> Tensor:
        centres = (some[..., :2] + some[..., 2:]) / 2
        return head(pool_regions(maps, some), context, centres)

    assert torch.allclose(made(boxes)[:, order], made(boxes[:, order]), atol=1e-6)


@pytest.mark.parametrize(
    ("length", "frames"), [(1, [4]), (3, [2, 4, 6]), (5, [2, 3, 4, 5, 6]), (7, list(range(1, 8)))]
)
def test_context_of_eight_frames(length: int, frames: list[int]) -> None:
    assert context_frames(8, length) == frames


def test_context_lies_inside_every_map() -> None:
    for frames in range(1, 20):
        for length in range(1, frames + 1, 2):
            found = context_frames(frames, length)
            assert len(set(found)) == length
            assert 0 <= min(found) <= max(found) < frames


@pytest.mark.parametrize(("frames", "length"), [(8, 2), (8, 0), (4, 5)])
def test_context_that_cannot_be(frames: int, length: int) -> None:
    with pytest.raises(ValueError, match=f"context_length={length}: an odd number"):
        context_frames(frames, length)


def perceive(layer: torch.nn.Linear, x: list[float]) -> list[float]:
    weights, bias = layer.weight.tolist(), layer.bias.tolist()
    return [
        sum(w * v for w, v in zip(row, x, strict=True)) + b
        for row, b in zip(weights, bias, strict=True)
    ]


def slow_head(
    head: RegionDecoder, query: list[float], context: Tensor, centre: list[float]
) -> list[float]:
    """One region through the head, with loops over Python floats."""
    channels, frames, height, width = context.shape

    def encoded(net: torch.nn.Sequential, x: list[float]) -> list[float]:
        return perceive(net[2], [max(0.0, v) for v in perceive(net[0], x)])

    memory = []
    for t in range(frames):
        for y in range(height):
            for x in range(width):
                token = [context[c, t, y, x].item() for c in range(channels)]
                token += encoded(head.when, [t - (frames - 1) / 2])
                token += encoded(head.where, [y - (height - 1) / 2, x - (width - 1) / 2])
                memory.append(token)
    if head.places_queries:
        y, x = centre[1] * height - (height - 1) / 2, centre[0] * width - (width - 1) / 2
        query = [*query, *encoded(head.when, [0.0]), *encoded(head.where, [y, x])]
    for layer in head.layers:
        found: list[float] = []
        for unit in layer:
            q = perceive(unit.query, query)
            keys = [perceive(unit.key, token) for token in memory]
            values = [perceive(unit.value, token) for token in memory]
            scores = [
                sum(a * b for a, b in zip(q, k, strict=True)) / math.sqrt(len(q)) for k in keys
            ]
            weights = [math.exp(s) for s in scores]
            total = math.fsum(weights)
            mixed = [
                q[i] + math.fsum(w * v[i] for w, v in zip(weights, values, strict=True)) / total
                for i in range(len(q))
            ]
            mean = sum(mixed) / len(mixed)
            variance = sum((v - mean) ** 2 for v in mixed) / len(mixed)
            normed = [(v - mean) / math.sqrt(variance + 1e-12) for v in mixed]
            hidden = perceive(unit.mlp[0], normed)
            if isinstance(unit.mlp[1], torch.nn.ReLU):
                hidden = [max(0.0, v) for v in hidden]
            else:
                hidden = [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in hidden]
            found += perceive(unit.mlp[2], hidden)
        query = found
    return perceive(head.output, query)


@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("position", ["memory", "query_and_memory"])
def test_head_equals_loops(activation: str, position: str) -> None:
    torch.manual_seed(0)
    head = RegionDecoder(3, hidden=4, activation=activation, position=position).double()
    regions, context = torch.randn(2, 2, 3).double(), torch.randn(2, 3, 2, 2, 3).double()
    centres = torch.rand(2, 2, 2).double()
    found = head(regions, context, centres)
    for b in range(2):
        for n in range(2):
            expected = slow_head(head, regions[b, n].tolist(), context[b], centres[b, n].tolist())
            assert found[b, n].tolist() == pytest.approx(expected, abs=1e-12)


def test_the_papers_head_has_its_parameters() -> None:
    with torch.device("meta"):
        head, placed = RegionDecoder(2048), RegionDecoder(2048, position="query_and_memory")
    count = sum(p.numel() for p in head.parameters())
    assert round(count / 1e6, 2) == 6.93
    assert sum(p.numel() for p in placed.parameters()) - count == 6144


def test_head_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="activation"):
        RegionDecoder(4, activation="tanh")
    with pytest.raises(ValueError, match="position"):
        RegionDecoder(4, position="query")
    with pytest.raises(ValueError, match="dropout"):
        RegionDecoder(4, dropout=1.0)
    with pytest.raises(ValueError, match="boxes"):
        pool_regions(torch.zeros(2, 3, 7, 7), torch.zeros(1, 5, 4))
