"""Crops against a loop over pixels in float64."""

import math

import pytest
import torch

from lightning_vssl.data.crops import context_side, crop_squares


def slow(picture, centre, side, size, fill):
    """Bilinear values at the centres of a window's pixels; one colour beyond the picture."""
    _, height, width = picture.shape
    out = torch.zeros(3, size, size, dtype=torch.float64)

    def at(channel, row, column):
        inside = 0 <= row < height and 0 <= column < width
        return float(picture[channel, row, column]) if inside else fill[channel]

    for c in range(3):
        for i in range(size):
            for j in range(size):
                y = centre[1] - side / 2 + (i + 0.5) * side / size - 0.5  # in pixel numbers
                x = centre[0] - side / 2 + (j + 0.5) * side / size - 0.5
                top, left = math.floor(y), math.floor(x)
                for row, down in ((top, 1 - (y - top)), (top + 1, y - top)):
                    for column, across in ((left, 1 - (x - left)), (left + 1, x - left)):
                        out[c, i, j] += down * across * at(c, row, column)
    return out


@pytest.fixture
def picture():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 9, 14), generator=generator, dtype=torch.uint8)


class TestCrops:
    @pytest.mark.parametrize(
        ("centre", "side", "size"),
        [((7.3, 4.1), 5.0, 11), ((1.0, 8.5), 12.7, 8), ((13.9, 0.2), 6.0, 6), ((-9, -9), 4.0, 3)],
    )
    def test_equal_a_loop_inside_and_beyond_the_picture(self, picture, centre, side, size):
        fill = picture.double().mean((1, 2)).tolist()
        made = crop_squares(picture, torch.tensor([centre]), torch.tensor([side]), size)
        expected = slow(picture, centre, side, size, fill)
        assert torch.allclose(made[0].double(), expected, rtol=0, atol=2e-3)

    def test_of_whole_pixels_are_the_pixels(self, picture):
        made = crop_squares(picture, torch.tensor([[6.0, 5.0]]), torch.tensor([4.0]), 4)
        assert torch.allclose(made[0], picture[:, 3:7, 4:8].float(), rtol=0, atol=1e-3)

    def test_are_cut_side_by_side_with_a_colour_of_ones_own(self, picture):
        centres, sides = torch.tensor([[6.0, 5.0], [0.0, 0.0]]), torch.tensor([4.0, 8.0])
        fill = torch.tensor([1.0, 2.0, 3.0])
        both = crop_squares(picture, centres, sides, 8, fill)
        for n in range(2):
            alone = crop_squares(picture, centres[n : n + 1], sides[n : n + 1], 8, fill)
            assert torch.allclose(both[n], alone[0])
        assert torch.allclose(both[1, :, 0, 0], fill, atol=1e-3)


def test_context_doubles_a_square():
    assert context_side(30, 30) == 60
    assert context_side(30, 30, 0) == 30
    assert context_side(10, 40) == pytest.approx(math.sqrt(35 * 65))
