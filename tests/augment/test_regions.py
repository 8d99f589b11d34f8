"""Random boxes against their distribution; boxes of the data, mirrored, cut and marked missing."""

import pytest
import torch

from lightning_vssl.augment.regions import RandomBoxes, RegionViews, usable_boxes
from lightning_vssl.augment.views import VideoViews
from lightning_vssl.nn.keyed import sample_key


def keys(count: int) -> torch.Tensor:
    return torch.tensor([sample_key(0, 0, i) for i in range(count)])


def batch(size: int = 3, side: int = 32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    video = torch.randint(
        0, 256, (size, 2, 4, 3, side, side), dtype=torch.uint8, generator=generator
    )
    return {"video": video, "key": keys(size), "index": torch.arange(size)}


def test_random_boxes_follow_the_papers_draw() -> None:
    boxes = RandomBoxes()(keys(4000), 2, 100, 200)
    assert boxes.shape == (4000, 2, 1, 8, 4)
    x1, y1, x2, y2 = (
        (boxes / torch.tensor([200.0, 100, 200, 100])).double().flatten(0, 3).unbind(-1)
    )
    assert min(x1.min(), y1.min()) >= 0
    assert max(x2.max(), y2.max()) <= 0.999 + 1e-6
    for corner in (x1, y1):
        assert corner.mean().item() == pytest.approx(0.5, abs=0.005)
        assert corner.std().item() == pytest.approx(1 / 12**0.5, abs=0.005)
    inside = (x2 < 0.998) & (x1 < 0.45)  # where the width was not cut off
    assert (x2 - x1)[inside].mean().item() == pytest.approx(0.3, abs=0.005)
    ratio = ((y2 - y1) / (x2 - x1))[inside & (y1 < 0.1) & (y2 < 0.998)]
    assert ratio.min() >= 0.5 - 1e-4
    assert ratio.max() <= 2 + 1e-4
    # all independent, unlike in the released code
    table = torch.stack([x1, y1, (x2 - x1)], dim=0)[:, x1 < 0.45]
    assert torch.corrcoef(table[:2]).fill_diagonal_(0).abs().max() < 0.02


def test_boxes_depend_on_the_key_alone_and_differ_by_view() -> None:
    draw = RandomBoxes(count=3)
    many = draw(keys(5), 2, 50, 50)
    assert torch.equal(many[3:4], draw(keys(5)[3:4], 2, 50, 50))
    assert not torch.equal(many[:, 0], many[:, 1])


def test_boxes_of_the_batch_are_mirrored_with_the_pixels() -> None:
    made_from = {**batch(8), "boxes": torch.tensor([2.0, 3, 12, 20]).expand(8, 2, 4, 5, 4)}
    made = RegionViews(VideoViews(), RandomBoxes())(made_from)
    flipped = made["views_params"]["flip"]
    assert 0 < flipped.sum() < 16
    assert torch.equal(made["boxes"][flipped][0, 0, 0], torch.tensor([20.0, 3, 30, 20]))
    assert torch.equal(made["boxes"][~flipped][0, 0, 0], torch.tensor([2.0, 3, 12, 20]))


def test_bad_boxes_are_cut_or_missing() -> None:
    nan, inf = torch.nan, torch.inf
    rows = {
        "fine": ([1, 2, 10, 12], [1, 2, 10, 12]),
        "cut": ([-5, -5, 50, 8], [0, 0, 32, 8]),
        "outside": ([40, 2, 50, 12], None),
        "empty": ([5, 5, 5, 9], None),
        "thin": ([5, 5, 5.5, 9], None),
        "reversed": ([10, 2, 1, 12], None),
        "half missing": ([1, 2, nan, 12], None),
        "missing": ([nan, nan, nan, nan], None),
        "infinite": ([0, 0, inf, 4], None),
    }
    found = usable_boxes(
        torch.tensor([box for box, _ in rows.values()], dtype=torch.float32), 32, 32
    )
    for (name, (_, expected)), box in zip(rows.items(), found, strict=True):
        assert box.isnan().all() if expected is None else box.tolist() == expected, name


def test_boxes_are_drawn_where_the_batch_brings_none() -> None:
    made = RegionViews(VideoViews(), RandomBoxes(count=5))(batch())
    assert made["boxes"].shape == (3, 2, 1, 5, 4)
    assert torch.equal(made["boxes"], RandomBoxes(count=5)(keys(3), 2, 32, 32))


@pytest.mark.parametrize(
    "options", [{"count": 0}, {"width": (0.0, 0.5)}, {"width": (0.6, 0.5)}, {"ratio": (0, 1)}]
)
def test_random_boxes_refuse_bad_ranges(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        RandomBoxes(**options)
