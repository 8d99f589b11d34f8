import re

import numpy as np
import pytest
import torch
from torch.nn import functional

from lightning_vssl import cli
from lightning_vssl.backbones import (
    R3D18,
    PytorchvideoResNet,
    YResNet,
    load_backbone,
    load_weights,
)
from lightning_vssl.backbones.padding import pads_as_tensorflow, same_padding
from lightning_vssl.backbones.tensorflow import PIXELS, read_npz
from lightning_vssl.evaluation.base import pretrained
from tests.backbones.test_weights import same_weights, scramble

DEPTH = (1, 2, 1, 1)
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
LEAVES = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}
# One bottleneck's layers in the order in which the source makes them.
LAYERS = (
    ("branch1_conv", "branch1_norm", "shortcut_conv"),
    ("branch2.conv_a", "branch2.norm_a", "temporal_conv"),
    ("branch2.conv_b", "branch2.norm_b", "spatial_conv"),
    ("branch2.conv_c", "branch2.norm_c", "expand_conv"),
)


def network(seed=0, depth=DEPTH):
    torch.manual_seed(seed)
    made = scramble(PytorchvideoResNet(width=4, depth=depth, pixels=PIXELS), seed)
    same_padding(made)
    return made


def array(tensor):
    """As TensorFlow keeps it: kernels [t, h, w, in, out]."""
    value = tensor.numpy()
    return value.transpose(2, 3, 4, 1, 0).copy() if value.ndim == 5 else value


def bottlenecks(state):
    keys = {re.match(r"blocks\.\d+\.res_blocks\.\d+", key) for key in state}
    found = {match[0] for match in keys if match}
    return sorted(found, key=lambda name: [int(n) for n in re.findall(r"\d+", name)])


def entries(state, module):
    """(leaf, array) of a layer."""
    for key, value in state.items():
        owner, _, leaf = key.rpartition(".")
        if owner == module and leaf != "num_batches_tracked":
            yield "kernel" if value.dim() == 5 else LEAVES[leaf], array(value)


def by_objects(state, root="backbone/", stem=("layer_with_weights-0", "layer_with_weights-1")):
    """A Keras functional model in a TF2 checkpoint."""
    named = {}
    modules = {"blocks.0.conv": stem[0], "blocks.0.norm": stem[1]}
    for number, block in enumerate(bottlenecks(state), start=2):
        for part, (conv, norm, name) in enumerate(LAYERS):
            modules[f"{block}.{conv}"] = f"layer_with_weights-{number}/_{name}"
            modules[f"{block}.{norm}"] = f"layer_with_weights-{number}/_norm{part}"
    for module, name in modules.items():
        named |= {f"{root}{name}/{leaf}{VALUE}": v for leaf, v in entries(state, module)}
    return named


def by_cells(state, root="model/backbone/"):
    """ConST-CL's subclassed model in a TF2 checkpoint."""
    named = {}
    modules = {"blocks.0.conv": "_stem_conv", "blocks.0.norm": "_stem_bn"}
    for block in bottlenecks(state):
        _, stage, _, cell = block.split(".")
        for part, (conv, norm, name) in enumerate(LAYERS):
            at = f"_blocks/res_{int(stage) + 1}/cell_{cell}"
            modules |= {f"{block}.{conv}": f"{at}/_{name}", f"{block}.{norm}": f"{at}/_norm{part}"}
    for module, name in modules.items():
        named |= {f"{root}{name}/{leaf}{VALUE}": v for leaf, v in entries(state, module)}
    return named


def by_layers(state, root="", numbered=False, norms="batch_normalization"):
    """Names of Keras's layers: given ones, or those that Keras counts up by itself."""
    named, conv_number, norm_number = {}, 0, 0
    modules = {
        "blocks.0.conv": "conv3d" if numbered else "stem",
        "blocks.0.norm": norms if numbered else "stem/batch_norm",
    }
    for number, block in enumerate(bottlenecks(state)):
        at = f"bottleneck_block3d_{number}" if number else "bottleneck_block3d"
        for conv, norm, name in LAYERS:
            conv_number, norm_number = conv_number + 1, norm_number + 1
            layers = (f"{name}", f"{name}/batch_norm")
            if numbered:  # an unused shortcut takes its number without having weights
                layers = (f"conv3d_{conv_number}", f"{norms}_{norm_number}")
            modules[f"{block}.{conv}"] = f"{at}/{layers[0]}"
            modules[f"{block}.{norm}"] = f"{at}/{layers[1]}"
    for module, name in modules.items():
        named |= {f"{root}{name}/{leaf}:0": v for leaf, v in entries(state, module)}
    return named


NAMINGS = {
    "objects": by_objects,
    "objects without backbone": lambda state: by_objects(state, root="model/layer_with_weights-0/"),
    "objects, no root": lambda state: by_objects(state, root=""),
    "cells": by_cells,
    "cells without backbone": lambda state: by_cells(state, root="model/"),
    "layers": by_layers,
    "numbered layers": lambda state: by_layers(state, numbered=True),
    "synchronised norms": lambda state: by_layers(
        state, "backbone/", numbered=True, norms="sync_batch_normalization"
    ),
}


def saved(path, named):
    np.savez(path, **named)
    return path


@pytest.fixture
def file(tmp_path):
    return tmp_path / "cvrl.npz"


@pytest.mark.parametrize("naming", list(NAMINGS))
def test_every_naming_gives_the_same_weights(naming, file):
    source = network(depth=(1, 12, 1, 1))  # block 10 sorts behind block 9, not behind block 1
    named = NAMINGS[naming](source.state_dict())
    shuffled = dict(sorted(named.items(), key=lambda item: item[0][::-1]))
    loaded = network(seed=1, depth=(1, 12, 1, 1))
    report = load_weights(loaded, saved(file, shuffled), echo=False)
    for key, value in source.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(loaded.state_dict()[key], value), key
    assert report.loaded + len(report.missing) == report.total
    assert all(key.endswith("num_batches_tracked") for key in report.missing)
    assert report.unexpected == ()
    assert report.naming.startswith("TensorFlow's names of ")


def reference(named, clip):
    """R3D's forward pass from TensorFlow's arrays alone, padding spelled out for even sizes."""

    def get(layer, leaf):
        return torch.from_numpy(named[f"backbone/{layer}/{leaf}{VALUE}"]).double()

    def norm(x, layer):
        shape = (1, -1, 1, 1, 1)
        mean, var, gamma, beta = (
            get(layer, leaf).view(shape)
            for leaf in ("moving_mean", "moving_variance", "gamma", "beta")
        )
        return (x - mean) / (var + 1e-5).sqrt() * gamma + beta

    def conv(x, layer, stride=(1, 1, 1)):
        kernel = get(layer, "kernel").permute(4, 3, 0, 1, 2)
        sides = []
        for n, k, s in zip(x.shape[2:], kernel.shape[2:], stride, strict=True):
            assert s == 1 or n % s == 0
            total = max(k - s, 0)
            sides = [total // 2, total - total // 2, *sides]
        return functional.conv3d(functional.pad(x, sides), kernel, stride=stride)

    x = conv(clip.double(), "layer_with_weights-0", (2, 2, 2))
    x = norm(x, "layer_with_weights-1").relu()
    x = functional.max_pool3d(
        functional.pad(x, (0, 1, 0, 1, 0, 0), value=-torch.inf), (1, 3, 3), (1, 2, 2)
    )
    number = 2
    for stage, depth in enumerate(DEPTH):
        for index in range(depth):
            block = f"layer_with_weights-{number}"
            step = (1, 2, 2) if stage > 0 and index == 0 else (1, 1, 1)
            shortcut = x
            if index == 0:
                shortcut = norm(conv(x, f"{block}/_shortcut_conv", step), f"{block}/_norm0")
            x = norm(conv(x, f"{block}/_temporal_conv"), f"{block}/_norm1").relu()
            x = norm(conv(x, f"{block}/_spatial_conv", step), f"{block}/_norm2").relu()
            x = norm(conv(x, f"{block}/_expand_conv"), f"{block}/_norm3")
            x = (x + shortcut).relu()
            number += 1
    return x


@torch.no_grad()
def test_the_loaded_network_computes_what_the_arrays_say(file):
    named = by_objects(network().state_dict())
    loaded = network(seed=1)
    load_weights(loaded, saved(file, named), echo=False)
    clip = torch.rand(2, 3, 8, 64, 64)
    expected = reference(named, clip)
    assert expected.abs().mean() > 0.1
    torch.testing.assert_close(loaded.double()(clip.double()), expected, rtol=0, atol=1e-10)
    symmetric = PytorchvideoResNet(width=4, depth=DEPTH).eval().double()
    symmetric.load_state_dict(loaded.state_dict())
    assert (symmetric(clip.double()) - expected).abs().max() > 1e-2


def test_what_training_adds_is_left_over(file):
    named = by_objects(network().state_dict())
    kernel = next(iter(named)).removesuffix(VALUE)
    more = {
        f"{kernel}/.OPTIMIZER_SLOT/optimizer/momentum{VALUE}": np.zeros((5, 7, 7, 3, 4)),
        f"optimizer/learning_rate{VALUE}": np.float32(0.3),
        f"save_counter{VALUE}": np.int64(1),
        f"model/layer_with_weights-1/kernel{VALUE}": np.zeros((128, 2048), np.float32),
        f"model/layer_with_weights-1/bias{VALUE}": np.zeros(128, np.float32),
        f"backbone/_res_5_1_layers/cell_0/_temporal_conv/kernel{VALUE}": np.zeros((3, 1, 1, 2, 2)),
        "_CHECKPOINTABLE_OBJECT_GRAPH": np.array(b"\x0a\x05"),
    }
    report = load_weights(network(seed=1), saved(file, {**named, **more}), echo=False)
    assert set(report.unexpected) == set(more)


def test_symmetric_padding_is_refused(file):
    source = network()
    saved(file, by_objects(source.state_dict()))
    symmetric = PytorchvideoResNet(width=4, depth=DEPTH)
    before = {key: value.clone() for key, value in symmetric.state_dict().items()}
    with pytest.raises(ValueError, match='build it with padding="tensorflow"'):
        load_weights(symmetric, file)
    assert all(torch.equal(before[k], v) for k, v in symmetric.state_dict().items())


def test_other_pixels_are_said_in_the_report(file):
    saved(file, by_objects(network().state_dict()))
    other = PytorchvideoResNet(width=4, depth=DEPTH)
    same_padding(other)
    report = load_weights(other, file, echo=False)
    assert "trained with pixels [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]], this backbone" in str(report)
    assert "trained with" not in str(load_weights(network(seed=1), file, echo=False))


def without(named, *parts):
    return {k: v for k, v in named.items() if not all(part in k for part in parts)}


def replaced(named, part, value):
    key = next(k for k in named if part in k)
    return {**named, key: value}


BLOCK = "backbone/layer_with_weights-3"
WRONG = {
    "a missing kernel": (
        lambda n: without(n, f"{BLOCK}/_spatial_conv/kernel"),
        r"Missing: blocks\.2\.res_blocks\.0\.branch2\.conv_b\.weight",
    ),
    "a missing stem": (
        lambda n: without(n, "layer_with_weights-0/"),
        r"Missing: blocks\.0\.conv\.weight",
    ),
    "another width": (
        lambda n: replaced(n, "_norm2/gamma", np.ones(7, np.float32)),
        r"Of another shape: blocks.*norm_b\.weight is \(7,\) in the file and \(4,\)",
    ),
    "a kernel without time": (
        lambda n: replaced(n, "layer_with_weights-0/kernel", np.ones((7, 7, 3, 4), np.float32)),
        r"Of another shape: blocks\.0\.conv\.weight is \(7, 7, 3, 4\)",
    ),
    "self-gating": (
        lambda n: {**n, f"{BLOCK}/_self_gating/_transformer_w/kernel{VALUE}": np.ones((1,) * 5)},
        rf"but not in PytorchvideoResNet: {BLOCK}/_self_gating/_transformer_w/kernel",
    ),
    "a bias": (
        lambda n: {**n, f"{BLOCK}/_spatial_conv/bias{VALUE}": np.ones(4)},
        rf"but not in PytorchvideoResNet: {BLOCK}/_spatial_conv/bias",
    ),
    "another stem": (
        lambda n: {**n, f"backbone/layer_with_weights-20/kernel{VALUE}": np.ones((1,) * 5)},
        r"Missing: blocks\.0\.conv\.weight.*layer_with_weights-20/kernel",
    ),
    "a block too few": (
        lambda n: without(n, f"{BLOCK}/"),
        r"has 4 bottlenecks .* and the backbone 5: name the depth",
    ),
    "two for one place": (
        lambda n: {**n, f"{BLOCK}/temporal_conv/kernel": np.ones((1,) * 5)},
        r"two entries of the file claim one place: .*_temporal_conv/kernel.* and .*temporal_conv",
    ),
    "no network": (
        lambda n: {"dense/kernel:0": np.ones((2, 2))},
        r"no bottlenecks .* it has dense/kernel",
    ),
    "objects": (
        lambda n: {**n, "meta": np.array([{"epoch": 1}], dtype=object)},
        r"holds Python objects \(meta\), which this library does not unpickle",
    ),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_what_does_not_fit_is_named_and_nothing_is_loaded(case, file):
    change, message = WRONG[case]
    saved(file, change(by_objects(network().state_dict())))
    other = network(seed=1)
    with pytest.raises(ValueError, match=message):
        load_weights(other, file)
    assert same_weights(other, network(seed=1))


def test_damaged_files_are_said_to_be_damaged(file, tmp_path):
    saved(file, by_objects(network().state_dict()))
    whole = file.read_bytes()
    for cut in (len(whole) // 2, 10, 0):
        file.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"not a readable \.npz \(cut short while copying\?\)"):
            read_npz(file)
    broken = bytearray(whole)
    broken[200:400] = bytes(200)  # inside the first array
    file.write_bytes(broken)
    with pytest.raises(ValueError, match=r"not a readable \.npz"):
        read_npz(file)
    np.save(tmp_path / "one.npy", np.ones(3))
    (tmp_path / "one.npy").rename(file)
    with pytest.raises(ValueError, match="no zip archive"):
        read_npz(file)
    with pytest.raises(FileNotFoundError):
        read_npz(tmp_path / "none.npz")


def test_misuse_is_answered(file):
    saved(file, by_objects(network().state_dict()))
    with pytest.raises(ValueError, match="inflate=True is for a 2-D ResNet"):
        load_weights(network(), file, inflate=True)
    with pytest.raises(ValueError, match="does not say which backbone it holds"):
        load_backbone(file)
    with pytest.raises(ValueError, match="whose place is PytorchvideoResNet"):
        load_weights(R3D18(width=2), file)


# The argument padding of the network


@pytest.mark.parametrize("kind", [PytorchvideoResNet, YResNet])
def test_padding_is_an_argument_that_an_export_keeps(kind, file, capsys):
    source = network()
    saved(file, by_objects(source.state_dict()))
    endpoint = ["--backbone.endpoint=global"] if kind is YResNet else []
    cli.main(
        [
            *("export", str(file), "--method=CVRL", f"--backbone={kind.__name__}", *endpoint),
            *("--backbone.width=4", f"--backbone.depth={list(DEPTH)}"),
            *("--backbone.padding=tensorflow", f"--backbone.pixels={[list(p) for p in PIXELS]}"),
        ]
    )
    assert "left over: none" in capsys.readouterr().out
    found = pretrained(None, str(file.with_suffix("")))
    assert (found.method, found.backbone.pixels) == ("CVRL", PIXELS)
    clip = torch.rand(1, 3, 8, 32, 32)
    assert torch.equal(found.backbone(clip), source(clip))
    if kind is PytorchvideoResNet:
        same = kind(width=4, depth=DEPTH, padding="tensorflow", pixels=PIXELS)
        direct = pretrained(same, str(file))  # without exporting it first
        assert torch.equal(direct.backbone.eval()(clip), source(clip))


def test_both_branches_pad_alike():
    with pytest.raises(ValueError, match="padding must be symmetric or tensorflow"):
        PytorchvideoResNet(width=4, depth=DEPTH, padding="same")
    both = YResNet(width=4, depth=DEPTH, padding="tensorflow")
    assert pads_as_tensorflow(both)
    assert both.downstream()["init_args"]["padding"] == "tensorflow"
