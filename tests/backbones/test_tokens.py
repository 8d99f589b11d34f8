"""What token networks share: stages from blocks, whole patches, maps from tokens."""

import pytest
import torch
from torch import Tensor, nn

from lightning_vssl.backbones.tokens import STAGES, TokenBackbone, Tokens, filled, quarters
from lightning_vssl.optim import parameter_groups


class Rows(TokenBackbone):
    """A network over (B, C, H, W) whose tokens are rows of pixels, with two extra in front."""

    def __init__(self):
        super().__init__(
            channels=dict.fromkeys(STAGES, 3),
            strides=dict.fromkeys(STAGES, (1, 1)),
            init_args={},
            dims=2,
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 2, 3))
        self.kernel = nn.Linear(3, 3)
        self.ran = []

    def embed(self, x: Tensor) -> Tokens:
        placed = x.flatten(2).transpose(1, 2)
        values = torch.cat([self.cls_token.expand(len(x), -1, -1), placed], 1)
        return Tokens(values, tuple(x.shape[2:]), others=2)

    def advance(self, name: str, carried: Tokens) -> Tokens:
        self.ran.append(name)
        return Tokens(carried.values + 1, carried.grid, carried.others)


def test_tokens_lie_where_their_patches_do():
    values = torch.arange(2 * 13 * 3).float().view(2, 13, 3)
    found = Tokens(values, (2, 2, 3), others=1).as_map()
    assert found.shape == (2, 3, 2, 2, 3)
    for t in range(2):
        for y in range(2):
            for x in range(3):
                assert torch.equal(found[:, :, t, y, x], values[:, 1 + t * 6 + y * 3 + x])


@pytest.mark.parametrize("blocks", [4, 5, 7, 12, 40])
def test_quarters_hold_every_block_once_and_differ_by_one_at_most(blocks):
    found = quarters(blocks)
    assert list(found) == list(STAGES[1:])
    assert [block for stage in found.values() for block in stage] == list(range(blocks))
    lengths = [len(stage) for stage in found.values()]
    assert max(lengths) - min(lengths) <= 1


def test_fewer_blocks_than_stages_are_refused():
    with pytest.raises(ValueError, match="at least 4 blocks, one a stage; got 3"):
        quarters(3)


def test_clips_are_filled_below_to_the_right_and_behind():
    clip = torch.randn(1, 3, 3, 5, 8, generator=torch.Generator().manual_seed(0))
    whole = filled(clip, (2, 4, 4))
    assert whole.shape == (1, 3, 4, 8, 8)
    assert torch.equal(whole[:, :, :3, :5], clip)
    assert torch.equal(whole[:, :, 3, :5], clip[:, :, 2])
    assert not whole[:, :, :, 5:].any()
    assert filled(clip, (3, 5, 8)) is clip
    assert filled(clip[:, :, 0], (4, 4)).shape == (1, 3, 8, 8)
    assert torch.equal(
        filled(clip[:, :, :1, :4], (2, 4, 4)), clip[:, :, :1, :4].repeat(1, 1, 2, 1, 1)
    )


def test_stages_run_in_order_and_only_as_far_as_asked():
    network = Rows()
    x = torch.rand(2, 3, 4, 5)
    maps = network.features(x, ["layer2", "stem"])
    assert list(maps) == ["stem", "layer2"]
    assert network.ran == ["layer1", "layer2"]
    torch.testing.assert_close(maps["stem"], x, rtol=0, atol=0)
    torch.testing.assert_close(maps["layer2"], x + 2)
    torch.testing.assert_close(network(x), x + 4)
    torch.testing.assert_close(network.stage("stem", x), x, rtol=0, atol=0)


def test_a_map_lacks_what_the_next_stage_needs():
    with pytest.raises(ValueError, match="Rows's layer1 needs more than the map"):
        Rows().stage("layer1", torch.rand(2, 3, 4, 5))
    with pytest.raises(ValueError, match=r"takes a tensor \(B, C, H, W\)"):
        Rows()(torch.rand(2, 3, 4, 4, 5))
    with pytest.raises(ValueError, match="stages must name at least one of stem"):
        Rows().features(torch.rand(2, 3, 4, 5), ["layer5"])


def test_decay_spares_the_extra_tokens():
    network = Rows()
    decayed, spared = parameter_groups(network)
    assert decayed["params"] == [network.kernel.weight]
    assert {id(one) for one in spared["params"]} == {id(network.cls_token), id(network.kernel.bias)}
