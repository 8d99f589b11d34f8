"""Weights of CVRL's TensorFlow release (tensorflow/models, official/projects/video_ssl).

TensorFlow is not needed here. Where it is installed, a checkpoint is written once as plain arrays:

    import numpy, tensorflow as tf
    path = "r3d_1x_k400_800ep_backbone-1"  # without .index and .data-...
    names = [name for name, _ in tf.train.list_variables(path) if not name.startswith("_")]
    arrays = {name: tf.train.load_variable(path, name) for name in names}
    numpy.savez("cvrl_k400_800ep.npz", **arrays)

and loaded by ``load_weights(backbone, "cvrl_k400_800ep.npz")`` into a network that pads as
TensorFlow does and takes its pixels in [-1, 1]:

    PytorchvideoResNet(padding="tensorflow", pixels=((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))

**What is assumed.** The released files themselves have not been inspected; their names are inferred
from the public source. There a network is a Keras model of one stem (convolution, norm) and a chain
of bottlenecks. A checkpoint may name it

- by attributes of the objects: ``backbone/layer_with_weights-0/kernel`` (stem), ``-1/gamma`` (its
  norm), ``backbone/layer_with_weights-2/_temporal_conv/kernel`` (the first bottleneck) and so on,
  or ``_stem_conv``, ``_stem_bn``, ``_blocks/res_2/cell_0/_norm1/gamma`` as ConST-CL's source has
  it, each with ``/.ATTRIBUTES/VARIABLE_VALUE`` behind;
- by Keras's names of layers: ``stem/kernel``, ``.../temporal_conv/kernel``,
  ``.../temporal_conv/batch_norm/gamma``, or with the numbered names that Keras gives by itself,
  ``conv3d/kernel``, ``bottleneck_block3d_1/conv3d_6/kernel``,
  ``bottleneck_block3d_1/batch_normalization_5/gamma``.

So entries are matched by structure more than by spelling. What stands below ``backbone`` (or,
without such a part, below what all bottlenecks share) is the network. The bottlenecks, ordered by
the numbers in their names, fill the stages from the first on; within one, a layer's part follows
from its name, or from the order of the numbers (shortcut if there are four, then temporal, spatial,
expansion), which is the order in which the source makes them. Every shape is then compared. What is
below the network and has no place in it is an error that names it. Optimizer slots, counters, heads
and ConST-CL's second res5 are left over.

Kernels [t, h, w, in, out] become (out, in, t, h, w); gamma, beta, moving_mean and moving_variance
become weight, bias, running_mean and running_var.
"""

import re
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_vssl.backbones.base import Pixels

PIXELS: Pixels = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""How CVRL's networks want their pixels: [0, 1] stretched to [-1, 1]."""

_Name = tuple[str, ...]

_LEAVES = {
    "kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_PARTS = ("branch1_{}", "branch2.{}_a", "branch2.{}_b", "branch2.{}_c")  # with conv or norm
_CONVS = {"shortcut_conv": 0, "temporal_conv": 1, "spatial_conv": 2, "expand_conv": 3}
_NORMS = {"norm0": 0, "norm1": 1, "norm2": 2, "norm3": 3}
_NUMBERED = re.compile(r"(?:conv3d|(?:sync_)?batch_normalization)(?:_\d+)?")
_BLOCK = re.compile(r"bottleneck_?block_?3d(?:_\d+)?")
_SIDE_BRANCH = re.compile(r"_?res_5_1(?:_layers)?")
_BACKBONES = ("backbone", "_backbone")
_BOOKKEEPING = re.compile(
    r"(^|/)(\.OPTIMIZER_SLOT|_?optimizer|save_counter|global_step|_CHECKPOINTABLE_OBJECT_GRAPH)(/|$)"
    r"|/(Momentum|momentum|ExponentialMovingAverage|average)$"
)


@dataclass(frozen=True)
class Converted:
    """A TensorFlow file in a backbone's names.

    Attributes:
        state: Entries of the network: under the backbone's name where they have a place in it,
            under their own where they have none.
        others: Names of entries outside the network, such as a head's or an optimizer's.
        naming: What the naming is called.
    """

    state: dict[str, Tensor]
    others: tuple[str, ...]
    naming: str


def read_npz(file: Path) -> dict[str, NDArray[np.generic]]:
    """Reads the arrays of an ``.npz`` without unpickling anything.

    Args:
        file: The file.

    Returns:
        Arrays by name.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, no ``.npz``, or holds Python objects.
    """
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    name = ""
    try:
        with file.open("rb") as stream:
            if not zipfile.is_zipfile(stream):
                raise ValueError("it is no zip archive, as numpy.savez writes them")
        with np.load(file, allow_pickle=False) as content:
            found = {}
            for name in content.files:
                found[name] = content[name]
            return found
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error):
            raise ValueError(
                f"{file} holds Python objects ({name}), which this library does not unpickle, "
                "since that runs code from the file; write plain arrays with numpy.savez"
            ) from error
        raise ValueError(
            f"{file} is not a readable .npz (cut short while copying?): {error}"
        ) from error


def convert(arrays: Mapping[str, NDArray[np.generic]], target: Mapping[str, Tensor]) -> Converted:
    """Gives a TensorFlow file's entries the names and layouts of an R3D of pytorchvideo's parts.

    Args:
        arrays: Arrays by name, as `read_npz` gives them.
        target: State dict of a `PytorchvideoResNet`, which gives the depth of each stage.

    Returns:
        The entries. Whether all have a place and the right shape is for the caller to check.

    Raises:
        ValueError: If no bottlenecks are found, their number is not the target's, or two entries
            claim one place.
    """
    places = _places(target)
    paths = {name: _path(name) for name in arrays}
    weights = {
        name: path
        for name, path in paths.items()
        if not _BOOKKEEPING.search("/".join(path)) and np.issubdtype(arrays[name].dtype, np.number)
    }
    root = _root(list(weights.values()))
    inside = {
        name: path[len(root) :]
        for name, path in weights.items()
        if path[: len(root)] == root and not any(_SIDE_BRANCH.fullmatch(part) for part in path)
    }
    ends = {name: _block_end(path) for name, path in inside.items()}
    # Block -> entry -> rest of its path. What else lies below a block is its own, too.
    blocks: dict[_Name, dict[str, _Name]] = {
        inside[name][:end]: {} for name, end in ends.items() if end is not None
    }
    stem: dict[str, _Name] = {}
    for name, path in inside.items():
        owner = next((path[:i] for i in range(len(path)) if path[:i] in blocks), None)
        if owner is None:
            stem[name] = path
        else:
            blocks[owner][name] = path[len(owner) :]
    if len(blocks) != len(places):
        raise ValueError(
            f"the file has {len(blocks)} bottlenecks ({_some(['/'.join(b) for b in blocks])}) and "
            f"the backbone {len(places)}: name the depth it was trained with"
        )
    renamed = _stem_names(stem)
    for place, block in zip(places, sorted(blocks, key=_natural), strict=True):
        renamed |= {k: f"{place}.{v}" for k, v in _block_names(blocks[block]).items()}
    _refuse_twins(renamed)
    state = {renamed.get(name, name): _as_tensor(arrays[name], name in renamed) for name in inside}
    others = tuple(name for name in arrays if name not in inside)
    by_object = any(".ATTRIBUTES" in name for name in arrays)
    kind = "names of objects" if by_object else "names of layers"
    return Converted(state, others, f"TensorFlow's {kind}")


def _path(name: str) -> _Name:
    """Parts of a name, without what says that it is a variable."""
    bare = name.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE").removesuffix(":0")
    return tuple(part for part in bare.split("/") if part)


def _natural(name: _Name) -> list[tuple[str | int, ...]]:
    """Sorts numbers inside a name by their value: ``block_2`` before ``block_10``."""
    pieces = (re.split(r"(\d+)", part) for part in name)
    return [tuple(int(p) if p.isdigit() else p for p in piece) for piece in pieces]


def _places(target: Mapping[str, Tensor]) -> list[str]:
    """The target's bottlenecks in the order they run."""
    found = {
        (int(m[1]), int(m[2])): m[0]
        for m in (re.match(r"blocks\.(\d+)\.res_blocks\.(\d+)", key) for key in target)
        if m is not None
    }
    if not found or "blocks.0.conv.weight" not in target:
        raise ValueError(
            "an .npz is read as CVRL's R3D-50 of TensorFlow, whose place is PytorchvideoResNet"
        )
    return [found[key] for key in sorted(found)]


def _block_end(path: _Name) -> int | None:
    """How many parts of a path name the bottleneck; None outside of one."""
    for i, part in enumerate(path[:-1]):
        if part.lstrip("_") in _CONVS or re.fullmatch(r"_norm[0-3]", part):
            return i
        if _BLOCK.fullmatch(part):
            return i + 1
    return None


def _root(paths: Sequence[_Name]) -> _Name:
    """Where the network lies in the file."""
    blocks = [path[:end] for path in paths if (end := _block_end(path)) is not None]
    if not blocks:
        raise ValueError(
            "the file has no bottlenecks (temporal_conv, spatial_conv, expand_conv) in any naming "
            f"known here; it has {_some(['/'.join(path) for path in paths])}"
        )
    for path in blocks:
        for i, part in enumerate(path):
            if part in _BACKBONES:
                return path[: i + 1]
    shared = blocks[0][:-1]
    for other in blocks:
        while other[: len(shared)] != shared:
            shared = shared[:-1]
    return shared[:-1] if shared[-1:] == ("_blocks",) else shared


def _stem_names(entries: Mapping[str, _Name]) -> dict[str, str]:
    """Names for what lies outside the bottlenecks: one kernel, and the four entries of one norm.

    Where there are more than one of a kind, none is taken: the caller reports them.
    """
    by_leaf: dict[str, list[str]] = defaultdict(list)
    for name, path in entries.items():
        by_leaf[path[-1]].append(name)
    return {
        names[0]: f"blocks.0.{'conv' if leaf == 'kernel' else 'norm'}.{_LEAVES[leaf]}"
        for leaf, names in by_leaf.items()
        if leaf in _LEAVES and len(names) == 1
    }


def _block_names(entries: Mapping[str, _Name]) -> dict[str, str]:
    """Names for the entries of one bottleneck; those that have no place are left out."""
    layers: dict[bool, dict[_Name, int]] = {True: {}, False: {}}  # convolutions, norms -> part
    unknown: dict[bool, list[_Name]] = {True: [], False: []}
    for path in entries.values():
        kind, layer = path[-1] == "kernel", path[:-1]
        if path[-1] not in _LEAVES or layer in layers[kind] or layer in unknown[kind]:
            continue
        part = _part(layer, kind)
        if part is not None:
            layers[kind][layer] = part
        elif len(layer) == 1 and _NUMBERED.fullmatch(layer[0]):
            unknown[kind].append(layer)
    for kind, numbered in unknown.items():
        if len(numbered) in (3, 4) and not layers[kind]:
            order = range(4 - len(numbered), 4)
            layers[kind] = dict(zip(sorted(numbered, key=_natural), order, strict=True))
    found = {}
    for name, path in entries.items():
        kind = path[-1] == "kernel"
        part = layers[kind].get(path[:-1])
        if path[-1] in _LEAVES and part is not None:
            place = _PARTS[part].format("conv" if kind else "norm")
            found[name] = f"{place}.{_LEAVES[path[-1]]}"
    return found


def _part(layer: _Name, is_conv: bool) -> int | None:
    """Which of a bottleneck's layers a name is: 0 shortcut, 1 temporal, 2 spatial, 3 expansion."""
    if is_conv:
        return _CONVS.get(layer[0].lstrip("_")) if len(layer) == 1 else None
    if len(layer) == 1:
        return _NORMS.get(layer[0].lstrip("_"))
    last = layer[-1] in ("batch_norm", "batch_normalization")
    return _CONVS.get(layer[0].lstrip("_")) if len(layer) == 2 and last else None


def _refuse_twins(renamed: Mapping[str, str]) -> None:
    claims: dict[str, list[str]] = defaultdict(list)
    for name, new in renamed.items():
        claims[new].append(name)
    twins = [f"{' and '.join(names)} for {new}" for new, names in claims.items() if len(names) > 1]
    if twins:
        raise ValueError(f"two entries of the file claim one place: {_some(twins)}")


def _as_tensor(array: NDArray[np.generic], placed: bool) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if placed and tensor.dim() == 5:
        tensor = tensor.permute(4, 3, 0, 1, 2)  # (t, h, w, in, out) -> (out, in, t, h, w)
    return tensor.contiguous()


def _some(names: Sequence[str], count: int = 5) -> str:
    rest = f", and {len(names) - count} more" if len(names) > count else ""
    return (", ".join(names[:count]) + rest) or "nothing"
