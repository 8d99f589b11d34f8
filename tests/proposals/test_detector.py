import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lightning_vssl.proposals.detector import Detector

SMALL = "ssdlite320_mobilenet_v3_large"  # 14 MB


class Found(nn.Module):
    """Finds the same in every frame, and remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, frames: list[Tensor]) -> list[dict[str, Tensor]]:
        self.seen += frames
        boxes = [
            [10.0, 0, 30, 20],  # a person
            [0, 10, 40, 30],  # a dog
            [-5, 5, 20, 45],  # a person that reaches outside
            [8, 8, 8, 20],  # without area
            [1, 1, 2, 2],  # below the threshold
        ]
        answer = {
            "boxes": torch.tensor(boxes),
            "scores": torch.tensor([0.7, 0.9, 0.8, 0.99, 0.4]),
            "labels": torch.tensor([1, 18, 1, 1, 1]),
        }
        return [answer] * len(frames)


@pytest.fixture(scope="module")
def untrained() -> Detector:
    return Detector(SMALL, None)


def detector(**settings: object) -> Detector:
    made = Detector(SMALL, None, frames_at_once=2, **settings)  # type: ignore[arg-type]
    made.network = Found()
    return made


def test_boxes_are_shares_in_the_order_of_scores():
    made = detector(max_boxes=4)
    frames = torch.arange(3 * 3 * 40 * 40).remainder(256).to(torch.uint8).reshape(3, 3, 40, 40)
    boxes = made(frames)
    assert boxes.shape == (3, 4, 4)
    expected = [[0, 0.25, 1, 0.75], [0, 0.125, 0.5, 1], [0.25, 0, 0.75, 0.5]]
    assert torch.allclose(boxes[0, :3], torch.tensor(expected))
    assert boxes[0, 3].isnan().all()
    assert torch.equal(boxes[2].nan_to_num(), boxes[0].nan_to_num())
    assert torch.allclose(torch.stack(made.network.seen) * 255, frames.float())
    assert made.limit == 4


def test_persons_alone():
    boxes = detector(classes="person", max_boxes=2)(torch.zeros(1, 3, 40, 40, dtype=torch.uint8))
    assert torch.allclose(boxes[0], torch.tensor([[0, 0.125, 0.5, 1], [0.25, 0, 0.75, 0.5]]))
    boxes = detector(classes="person", max_boxes=1)(torch.zeros(1, 3, 40, 40, dtype=torch.uint8))
    assert boxes.shape == (1, 1, 4)
    assert boxes[0, 0, 3] == 1


def test_nothing_found():
    boxes = detector(threshold=1.0)(torch.zeros(2, 3, 40, 40, dtype=torch.uint8))
    assert boxes.shape == (2, 16, 4)
    assert boxes.isnan().all()


def test_a_real_network_runs(untrained):
    made = Detector(SMALL, None, threshold=0.0, max_boxes=3)
    boxes = made.train()(torch.randint(0, 256, (2, 3, 48, 64), dtype=torch.uint8))
    assert boxes.shape == (2, 3, 4)
    kept = boxes[~boxes.isnan().any(dim=2)]
    assert (kept[:, 2:] > kept[:, :2]).all()
    assert made.source == f"detector {SMALL}"
    assert not made.network.training
    assert len(list(made.parameters())) > 100


def test_weights_from_a_file(untrained, tmp_path):
    state = untrained.network.state_dict()
    torch.save({"model": state}, tmp_path / "w.pth")
    save_file(
        {name: value.contiguous() for name, value in state.items()}, tmp_path / "w.safetensors"
    )
    for file in ("w.pth", "w.safetensors"):
        made = Detector(SMALL, str(tmp_path / file))
        assert str(made.settings["weights"]).startswith("sha256 ")
        loaded = made.network.state_dict()
        assert all(torch.equal(loaded[name], value) for name, value in state.items())
    torch.save({"other": torch.zeros(1)}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=r"bad\.pth do not fit ssdlite"):
        Detector(SMALL, str(tmp_path / "bad.pth"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"network": "resnet50"}, "network='resnet50': choose one of fasterrcnn_"),
        ({"weights": "none.pth"}, "there is no such file, and torchvision's of .* are COCO_V1"),
        ({"classes": "dog"}, "choose 'person' or 'all'"),
        ({"threshold": 2.0}, "threshold=2.0"),
        ({"max_boxes": 0}, "max_boxes=0"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Detector(**{"network": SMALL, "weights": None, **settings})
