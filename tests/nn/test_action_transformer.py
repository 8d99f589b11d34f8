"""The action transformer against its formulas in loops; the plain head against pytorchvideo's."""

import math

import pytest
import torch
from pytorchvideo.models.head import create_res_roi_pooling_head
from torch import Tensor, nn
from torchvision.ops import RoIAlign

from lightning_vssl.nn.action_transformer import ActionTransformer, RoIHead
from tests.nn.test_regions import bilinear, perceive


def scene(seed: int = 0, boxes: int = 4) -> tuple[Tensor, Tensor]:
    """Maps (2, 3, 4, 5, 6) and boxes (2, N, 4), some of them at the border."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(2, 3, 4, 5, 6, generator=generator, dtype=torch.float64)
    corner = torch.rand(2, boxes, 2, generator=generator, dtype=torch.float64) * 0.6
    side = torch.rand(2, boxes, 2, generator=generator, dtype=torch.float64) * 0.35 + 0.02
    made = torch.cat([corner, corner + side], dim=-1)
    made[0, 0] = torch.tensor([0.0, 0.0, 1.0, 1.0])
    return maps, made


def gelu(x: float) -> float:
    return x * (1 + math.erf(x / math.sqrt(2))) / 2


def slow_unit(unit: nn.Module, x: list[float], memory: list[list[float]]) -> list[float]:
    """One query through one unit, by loops over Python floats."""
    query = perceive(unit.query, x)
    keys = [perceive(unit.key, token) for token in memory]
    values = [perceive(unit.value, token) for token in memory]
    scale = math.sqrt(len(query))
    scores = [sum(q * k for q, k in zip(query, key, strict=True)) / scale for key in keys]
    weights = [math.exp(score - max(scores)) for score in scores]
    attended = [
        sum(w * value[c] for w, value in zip(weights, values, strict=True)) / sum(weights)
        for c in range(len(query))
    ]
    total = [q + a for q, a in zip(query, attended, strict=True)]
    mean = sum(total) / len(total)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in total) / len(total) + 1e-12)
    scaled = zip(total, unit.norm.weight.tolist(), unit.norm.bias.tolist(), strict=True)
    normed = [(v - mean) / deviation * w + b for v, w, b in scaled]
    return perceive(unit.mlp[2], [gelu(v) for v in perceive(unit.mlp[0], normed)])


def slow_logits(head: ActionTransformer, maps: Tensor, box: Tensor) -> list[float]:
    """One box of one clip through the head, by loops over Python floats."""
    channels, frames, height, width = maps.shape

    def encoded(net: nn.Sequential, x: list[float]) -> list[float]:
        return perceive(net[2], [max(0.0, v) for v in perceive(net[0], x)])

    memory = []
    still = [[[0.0] * width for _ in range(height)] for _ in range(channels + 16)]
    for t in range(frames):
        for y in range(height):
            for x in range(width):
                token = [maps[c, t, y, x].item() for c in range(channels)]
                token += encoded(head.when, [t - (frames - 1) / 2])
                token += encoded(head.where, [y - (height - 1) / 2, x - (width - 1) / 2])
                memory.append(token)
                for c, value in enumerate(token):
                    still[c][y][x] += value / frames
    x1, y1, x2, y2 = box.tolist()
    steps = [(i + 0.5) / 4 for i in range(4)]
    seen = [
        max(
            bilinear(plane, (y1 + (y2 - y1) * v) * height, (x1 + (x2 - x1) * u) * width)
            for v in steps
            for u in steps
        )
        for plane in still
    ]
    for layer in head.layers:
        seen = [value for unit in layer for value in slow_unit(unit, seen, memory)]
    return perceive(head.linear, seen)


def test_the_transformer_equals_its_formulas_in_loops() -> None:
    torch.manual_seed(0)
    maps, boxes = scene(boxes=2)
    head = ActionTransformer(3, 2, hidden=4, layers=2, heads=2).double().eval()
    nn.init.normal_(head.linear.bias)
    with torch.no_grad():
        found = head(maps, boxes)
    assert found.shape == (2, 2, 2)
    for b in range(2):
        for n in range(2):
            expected = slow_logits(head, maps[b], boxes[b, n])
            assert found[b, n].tolist() == pytest.approx(expected, abs=1e-10)


def test_the_plain_head_equals_pytorchvideos() -> None:
    maps, boxes = (x.float() for x in scene(1))
    mine = RoIHead(3, 5).eval()
    its = create_res_roi_pooling_head(
        in_features=3,
        out_features=5,
        resolution=(7, 7),
        spatial_scale=1.0,
        roi=lambda **arguments: RoIAlign(aligned=True, **arguments),
        pool_kernel_size=(4, 1, 1),
    ).eval()
    its.proj.load_state_dict(mine.linear.state_dict())
    rows = torch.arange(2.0).repeat_interleave(4)[:, None]
    corners = boxes.flatten(0, 1) * torch.tensor([6.0, 5.0, 6.0, 5.0])
    with torch.no_grad():
        expected = its(maps, torch.cat([rows, corners], dim=1))
        torch.testing.assert_close(mine(maps, boxes).flatten(0, 1), expected)


def heads() -> list[nn.Module]:
    torch.manual_seed(0)
    made = [ActionTransformer(3, 5, hidden=8, layers=2, heads=2), RoIHead(3, 5)]
    return [head.double().eval() for head in made]


@pytest.mark.parametrize("head", heads(), ids=["transformer", "plain"])
def test_a_box_is_classified_by_itself(head: nn.Module) -> None:
    maps, boxes = scene()
    found = head(maps, boxes)
    torch.testing.assert_close(head(maps, boxes[:, [2, 0]]), found[:, [2, 0]])
    torch.testing.assert_close(head(maps[1:], boxes[1:]), found[1:])
    assert not torch.allclose(found[:, 0], found[:, 1])
    assert head(maps, boxes[:, :0]).shape == (2, 0, 5)


def test_the_transformer_alone_sees_what_is_outside_the_box() -> None:
    maps, _ = scene()
    boxes = torch.tensor([[[0.0, 0.0, 0.3, 0.3]]] * 2, dtype=torch.float64)
    elsewhere = maps.clone()
    elsewhere[:, :, :, 4, 5] += 1
    turned = maps.flip(2)  # the same mean over time, in another order
    transformer, plain = heads()
    assert torch.equal(plain(maps, boxes), plain(elsewhere, boxes))
    torch.testing.assert_close(plain(maps, boxes), plain(turned, boxes))
    assert not torch.allclose(transformer(maps, boxes), transformer(elsewhere, boxes), rtol=1e-4)
    assert not torch.allclose(transformer(maps, boxes), transformer(turned, boxes), rtol=1e-4)


def test_boxes_keep_their_place_in_half_precision() -> None:
    ramp = torch.arange(64.0).expand(1, 1, 2, 64, 64)
    left = torch.linspace(0.30, 0.32, 9)
    boxes = torch.stack([left, left, left + 0.1, left + 0.1], dim=-1)[None]
    head = RoIHead(1, 1).eval()
    nn.init.ones_(head.linear.weight)
    apart = head(ramp.bfloat16(), boxes)[0, :, 0].diff()
    assert torch.allclose(apart, torch.full_like(apart, 64 * 0.0025), rtol=1e-3)


def test_sizes_at_the_papers_widths() -> None:
    with torch.device("meta"):
        head, plain = ActionTransformer(2048, 80), RoIHead(2048, 80)
    unit = 2 * (128 * 128 + 128) + 2 * 128  # the MLP and the norm
    token, between = 2064 * 128 + 128, 384 * 128 + 128
    expected = 3 * (3 * token + unit) + 6 * (between + 2 * token + unit)
    expected += (4 + 4 + 32 + 8) + (8 + 4 + 32 + 8) + 384 * 80 + 80
    assert sum(p.numel() for p in head.parameters()) == expected == 6_176_820
    assert sum(p.numel() for p in plain.parameters()) == 2048 * 80 + 80


@pytest.mark.parametrize("head", heads(), ids=["transformer", "plain"])
def test_a_config_rebuilds_the_head(head: ActionTransformer | RoIHead) -> None:
    config = head.config
    arguments = config["init_args"]
    assert str(config["class_path"]).endswith(f"nn.action_transformer.{type(head).__name__}")
    assert isinstance(arguments, dict)
    again = type(head)(**arguments).double().eval()
    again.load_state_dict(head.state_dict())
    assert torch.equal(again(*scene()), head(*scene()))
    assert again.dropout.p == head.dropout.p


def test_heads_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="num_classes must be at least 1"):
        RoIHead(3, 0)
    with pytest.raises(ValueError, match="dropout must be in"):
        ActionTransformer(3, 2, dropout=1.0)
    with pytest.raises(ValueError, match="hidden, layers and heads"):
        ActionTransformer(3, 2, layers=0)
    with pytest.raises(ValueError, match="bins must be at least 1"):
        RoIHead(3, 2, bins=0)
