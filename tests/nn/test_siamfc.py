"""The head against a loop over places, in float64."""

import pytest
import torch

from lightning_vssl.nn.siamfc import SiamFCHead, cross_correlate


def slow(exemplar, search):
    """One pair: (C, h, w) and (C, H, W) -> (H - h + 1, W - w + 1)."""
    _, h, w = exemplar.shape
    height, width = search.shape[1] - h + 1, search.shape[2] - w + 1
    found = torch.zeros(height, width, dtype=torch.float64)
    for i in range(height):
        for j in range(width):
            found[i, j] = (exemplar * search[:, i : i + h, j : j + w]).sum()
    return found


@pytest.fixture
def maps():
    generator = torch.Generator().manual_seed(0)
    draw = torch.float64
    exemplars = torch.randn(3, 4, 2, 3, generator=generator, dtype=draw)
    return exemplars, torch.randn(3, 4, 5, 7, generator=generator, dtype=draw)


class TestCrossCorrelate:
    def test_equals_a_loop_pair_by_pair(self, maps):
        exemplars, searches = maps
        expected = torch.stack([slow(a, b) for a, b in zip(exemplars, searches, strict=True)])
        assert torch.allclose(cross_correlate(exemplars, searches), expected, rtol=0, atol=1e-12)

    def test_one_exemplar_serves_all_searches(self, maps):
        exemplars, searches = maps
        expected = torch.stack([slow(exemplars[0], search) for search in searches])
        found = cross_correlate(exemplars[:1], searches)
        assert torch.allclose(found, expected, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("shape", [(2, 4, 2, 3), (3, 5, 2, 3), (3, 4, 6, 3), (4, 2, 3)])
    def test_shapes_that_do_not_fit(self, maps, shape):
        with pytest.raises(ValueError, match="exemplars must be"):
            cross_correlate(torch.zeros(shape), maps[1].float())


class TestHead:
    def test_without_convolutions_scales_and_has_nothing_to_train(self, maps):
        head = SiamFCHead(4, scale=0.5)
        assert not list(head.parameters())
        assert torch.allclose(head(*maps), 0.5 * cross_correlate(*maps))

    def test_convolutions_are_one_for_each_side(self, maps):
        head = SiamFCHead(4, 6, scale=1.0).double()
        exemplars, searches = maps
        by_hand = [
            torch.einsum("bchw,dc->bdhw", x, conv.weight[:, :, 0, 0]) + conv.bias[:, None, None]
            for x, conv in ((exemplars, head.exemplar), (searches, head.search))
        ]
        assert torch.allclose(head(exemplars, searches), cross_correlate(*by_hand))
        assert not torch.equal(head.exemplar.weight, head.search.weight)

    def test_half_precision_does_not_overflow(self):
        maps = torch.full((1, 64, 16, 16), 16.0, dtype=torch.float16)
        with torch.autocast("cpu", torch.bfloat16):
            found = SiamFCHead(64)(maps, maps)
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(0.001 * 64 * 16**4)

    @pytest.mark.parametrize("wrong", [{"channels": 0}, {"scale": 0.0}])
    def test_bad_numbers(self, wrong):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SiamFCHead(4, **wrong)
