import functools

import pytest
import torch
from torch import Tensor, nn

from lightning_vssl.backbones import C3D, R3D18, S3DG, Backbone
from lightning_vssl.backbones.base import as_pixels


class Frames(Backbone):
    """A network over single images, as a user might write one."""

    def __init__(self, width: int = 4) -> None:
        super().__init__(
            channels={"first": width, "second": 2 * width},
            strides={"first": (1, 2), "second": (1, 4)},
            init_args={"width": width},
            dims=2,
        )
        self.first = nn.Conv2d(3, width, 2, 2)
        self.second = nn.Conv2d(width, 2 * width, 2, 2)

    def stage(self, name: str, x: Tensor) -> Tensor:
        return self.get_submodule(name)(x)


def test_forward_runs_the_stages_in_order_and_features_collects_them():
    network = Frames()
    x = torch.rand(2, 3, 8, 8)
    first = network.first(x)
    second = network.second(first)
    torch.testing.assert_close(network(x), second, rtol=0, atol=0)
    maps = network.features(x, ["second", "first"])
    assert list(maps) == ["first", "second"]
    torch.testing.assert_close(maps["first"], first, rtol=0, atol=0)
    torch.testing.assert_close(maps["second"], second, rtol=0, atol=0)


def test_description_follows_from_the_stages():
    network = Frames(width=6)
    assert (network.num_features, network.stride, network.dims) == (12, (1, 4), 2)
    assert network.stages == ("first", "second")
    assert network.stage_channels == {"first": 6, "second": 12}


def test_features_stop_at_the_last_stage_asked_for():
    network = Frames()
    network.second = None  # would fail if it ran
    assert list(network.features(torch.rand(1, 3, 8, 8), ["first"])) == ["first"]


def test_config_names_the_users_class_and_plain_arguments():
    assert Frames(5).config == {"class_path": f"{__name__}.Frames", "init_args": {"width": 5}}
    assert Frames(5).downstream() == Frames(5).config


def test_config_of_own_classes_goes_by_the_public_name():
    config = R3D18(width=4, depth=(1, 1, 1, 1)).config
    assert config["class_path"] == "lightning_vssl.backbones.R3D18"
    assert config["init_args"]["depth"] == [1, 1, 1, 1]


@pytest.mark.parametrize("stages", [["layer5"], []])
def test_unknown_stages_are_refused_by_name(stages):
    with pytest.raises(ValueError, match=r"stages must name at least one of first, second"):
        Frames().features(torch.rand(1, 3, 8, 8), stages)


def test_a_tensor_of_other_dimensions_is_refused():
    with pytest.raises(ValueError, match=r"Frames takes a tensor \(B, C, H, W\); got shape"):
        Frames()(torch.rand(1, 3, 2, 8, 8))
    with pytest.raises(ValueError, match=r"R3D18 takes a tensor \(B, C, T, H, W\)"):
        R3D18(width=2, depth=(1, 1, 1, 1))(torch.rand(3, 2, 8, 8))


@pytest.mark.parametrize(
    "network",
    [C3D(width=2, depth=(1, 1, 1, 1, 1)), S3DG(width=2), S3DG(width=2, stem="temporal")],
    ids=["C3D", "S3DG", "S3DG, temporal stem"],
)
def test_the_least_clip_runs_and_a_smaller_one_is_refused(network):
    frames, side = network.least
    assert network.eval()(torch.rand(1, 3, frames, side, side)).shape[2:] == (1, 1, 1)
    for shape in ((frames - 1, side, side), (frames, side - 1, side), (frames, side, side - 1)):
        x = torch.rand(1, 3, *shape)
        with pytest.raises(
            ValueError, match=rf"of {frames} frames or more, of {side} x {side} pix"
        ):
            network(x)
        with pytest.raises(RuntimeError, match="Output size is too small"):
            functools.reduce(lambda maps, name: network.stage(name, maps), network.stages, x)


@pytest.mark.parametrize("pixels", [((0.5, 0.5), (1, 1)), ((0, 0, 0),), ((0, 0, 0), (1, 1, 0.0))])
def test_pixels_are_checked(pixels):
    with pytest.raises(ValueError, match="pixels must be"):
        as_pixels(pixels)


def test_stages_must_agree():
    class Odd(Frames):
        def __init__(self) -> None:
            Backbone.__init__(self, channels={"a": 1}, strides={"b": (1, 1)}, init_args={})

    with pytest.raises(ValueError, match="same stages"):
        Odd()
