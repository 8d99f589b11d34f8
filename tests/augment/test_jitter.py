"""Jittered views: boxes against where their pixels went, windows against the picture, draws."""

import pytest
import torch

from lightning_vssl.augment.jitter import JitteredViews
from lightning_vssl.nn.keyed import sample_key

EXACT = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
HEIGHT, WIDTH = 90, 160  # of the picture, on a canvas of 160 x 160
BOX = (20, 20, 50, 60)


def keys(count: int) -> torch.Tensor:
    return torch.tensor([sample_key(0, 0, i) for i in range(count)])


def batch(count: int) -> dict[str, torch.Tensor]:
    """A white box on a black picture, whose upper left corner is red, on a green canvas."""
    video = torch.zeros(count, 1, 2, 3, 160, 160, dtype=torch.uint8)
    video[..., 1, :, :] = 255
    video[..., :HEIGHT, :WIDTH] = 0
    video[..., 0, :9, :16] = 255
    x1, y1, x2, y2 = BOX
    video[..., y1:y2, x1:x2] = 255
    nan = (torch.nan,) * 4
    boxes = torch.tensor([BOX, nan], dtype=torch.float32).expand(count, 1, 1, 2, 4)
    shown = torch.tensor([HEIGHT, WIDTH]).expand(count, 1, 2)
    index = torch.arange(count)
    return {"video": video, "boxes": boxes, "shown": shown, "key": keys(count), "index": index}


def extent(mask: torch.Tensor) -> list[int]:
    """Box (xyxy) around the pixels that are true."""
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    return [columns[0].item(), rows[0].item(), columns[-1].item() + 1, rows[-1].item() + 1]


def test_boxes_lie_where_their_pixels_went() -> None:
    given = batch(60)
    made = JitteredViews(*EXACT, fill=0)(given)
    assert made["views"].shape == (60, 1, 3, 2, 160, 160)
    assert torch.equal(made["video"], given["video"])
    seen = made["views_params"]["flip"].float().mean().item()
    assert 0.25 < seen < 0.75
    lost = 0
    for view, boxes in zip(made["views"][:, 0], made["boxes"][:, 0, 0], strict=True):
        assert boxes[1].isnan().all()
        assert torch.equal(view[:, 0], view[:, 1])  # the same for all frames
        white = view[2, 0] > 0.5  # neither red nor green
        if boxes[0].isnan().any():
            lost += 1
            assert not white[1:-1, 1:-1].any()
            continue
        assert extent(white) == pytest.approx(boxes[0].tolist(), abs=0.76)
    assert 0 < lost < 30


def test_the_window_lies_on_the_picture_and_the_rest_is_filled() -> None:
    made, other = (JitteredViews(*EXACT, flip=0.0, fill=fill)(batch(60)) for fill in (0, 51))
    filled = (made["views"] != other["views"]).any(2)[:, 0, 0]  # (60, 160, 160)
    assert (other["views"][:, 0, 2, 0][filled] == torch.tensor(51) / 255).all()
    for empty, scale in zip(filled, made["views_params"]["scale"][:, 0].tolist(), strict=True):
        height, width = min(160, round(HEIGHT * scale)), min(160, round(WIDTH * scale))
        assert not empty[:height, :width].any()
        assert empty[height:].all()
        assert empty[:, width:].all()
    green = (made["views"][:, 0, 1, 0] > 0.5) & (made["views"][:, 0, 0, 0] < 0.5)
    assert not green.any()  # the canvas beside the picture is never shown
    places = [extent(view[2] > 0.5)[0] for view in made["views"][:, 0, :, 0] if view[2].max() > 0.5]
    assert min(places) == 0  # windows begin left of the box, inside it, and beyond
    assert max(places) > 20
    assert 0 < len(places) < 60


def test_factor_one_changes_nothing_and_a_flip_mirrors_the_picture_alone() -> None:
    given = batch(2)
    same = JitteredViews(*EXACT, flip=0.0, scale=(1.0, 1.0), fill=0)(given)
    picture = given["video"].transpose(2, 3)[..., :HEIGHT, :] / 255
    assert torch.equal(same["views"][..., :HEIGHT, :], picture)
    assert torch.equal(same["boxes"][:, 0, 0, 0], torch.tensor([BOX, BOX], dtype=torch.float32))
    given["video"], given["shown"] = given["video"].transpose(-1, -2), given["shown"].flip(-1)
    given["boxes"] = given["boxes"][..., [1, 0, 3, 2]]
    flipped = JitteredViews(*EXACT, flip=1.0, scale=(1.0, 1.0), fill=0)(given)
    tall = picture.transpose(-1, -2)
    assert torch.equal(flipped["views"][..., :HEIGHT], tall.flip(-1))
    assert flipped["boxes"][0, 0, 0, 0].tolist() == [HEIGHT - 60, 20, HEIGHT - 20, 50]


def test_without_a_word_the_picture_is_the_whole_canvas() -> None:
    given = batch(3)
    del given["shown"], given["boxes"]
    made = JitteredViews(*EXACT, flip=0.0, scale=(0.5, 0.5), fill=255)(given)
    assert "boxes" not in made
    halved = made["views"][0, 0, :, 0]
    assert (halved[:, 80:] == 1).all()
    assert (halved[:, :, 80:] == 1).all()
    assert (halved[1, 46:79, 1:79] == 1).all()  # the green canvas, as part of the picture
    assert (halved[0, 46:79, 1:79] == 0).all()


def test_draws_are_uniform_and_the_samples_own() -> None:
    views = JitteredViews()
    drawn = views.draw(keys(4000), 1)
    scale = drawn["scale"].double()
    assert (scale.min() >= 0.5, scale.max() < 2) == (True, True)
    assert scale.mean().item() == pytest.approx(1.25, abs=0.02)
    assert scale.std().item() == pytest.approx(1.5 / 12**0.5, abs=0.01)
    alike = torch.corrcoef(torch.cat([drawn["place"][:, 0].T, scale.T, drawn["flip"].T.double()]))
    assert alike.fill_diagonal_(0).abs().max() < 0.06
    given = batch(5)
    many = views(given)
    one = views({name: value[3:4] for name, value in given.items()})
    assert torch.equal(one["views"], many["views"][3:4])
    assert torch.equal(one["boxes"].nan_to_num(), many["boxes"][3:4].nan_to_num())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"flip": 1.5}, "flip must be a probability"),
        ({"scale": (0.0, 2.0)}, "scale must be a range of factors"),
        ({"scale": (2.0, 0.5)}, "scale must be a range of factors"),
        ({"fill": 256}, "fill must be a grey level"),
    ],
)
def test_values_out_of_range(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JitteredViews(**arguments)  # type: ignore[arg-type]


def test_only_uint8_clips() -> None:
    given = batch(1)
    with pytest.raises(ValueError, match="must be uint8"):
        JitteredViews()({**given, "video": given["video"].float()})
