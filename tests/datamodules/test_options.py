"""What data modules of videos share: typed once, and still on the command line with its help."""

import inspect
from typing import get_type_hints

import pytest
from jsonargparse import ArgumentParser

from lightning_vssl.datamodules.ava import AVA
from lightning_vssl.datamodules.ava_kinetics import AVAKinetics
from lightning_vssl.datamodules.base import VideoDataModule
from lightning_vssl.datamodules.demo import Demo
from lightning_vssl.datamodules.jhmdb import JHMDB
from lightning_vssl.datamodules.mini_kinetics import MiniKinetics
from lightning_vssl.datamodules.options import LoaderOptions, VideoOptions
from lightning_vssl.datamodules.ucf101 import UCF101

SHARED = {
    name: parameter
    for name, parameter in inspect.signature(VideoDataModule).parameters.items()
    if name != "root"
}


def test_types_are_those_of_the_constructor():
    wanted = get_type_hints(VideoDataModule.__init__)
    assert get_type_hints(VideoOptions) == {name: wanted[name] for name in SHARED}


@pytest.mark.parametrize("kind", [Demo, JHMDB, MiniKinetics, UCF101])
def test_command_line_has_every_option_with_default_and_help(kind: type[VideoDataModule]):
    parser = ArgumentParser()
    parser.add_class_arguments(kind, "data")
    found = {action.dest.removeprefix("data."): action for action in parser._actions}
    assert not SHARED.keys() - found.keys()
    for name, parameter in SHARED.items():
        assert found[name].help
        if name not in ("max_missing", "max_unreadable"):
            assert found[name].default == parameter.default


@pytest.mark.parametrize(("kind", "threshold"), [(AVA, 0.8), (AVAKinetics, 0.2)])
def test_films_take_the_options_of_loaders(kind: type[AVA], threshold: float, tmp_path):
    parser = ArgumentParser()
    parser.add_class_arguments(kind, "data")
    found = {action.dest.removeprefix("data.") for action in parser._actions}
    assert not get_type_hints(LoaderOptions).keys() - found
    assert "clips" not in found
    assert kind(tmp_path).threshold == threshold
    assert kind(tmp_path, threshold=0.5).threshold == 0.5


def test_misspelled_option_is_refused(tmp_path):
    with pytest.raises(TypeError, match="batchsize"):
        UCF101(tmp_path, batchsize=3)  # type: ignore[call-arg]
