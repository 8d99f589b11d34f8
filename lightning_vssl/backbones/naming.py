"""The names under which others save the same networks.

A checkpoint is first unwrapped (``module.`` of DistributedDataParallel, ``_orig_mod.`` of
torch.compile, ``backbone.`` of a method that owns the backbone), then its names are tried as they
are and in each naming listed here; the naming that fits most of the backbone's entries is taken.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

_CTP_STEM = {
    "conv": "0",
    "bn": "1",
    # R(2+1)D
    "conv_s": "0",
    "bn_s": "1",
    "conv_t": "3",
    "bn_t": "4",
}
_CTP_STEM_KEY = re.compile(r"stem\.(conv|bn|conv_s|bn_s|conv_t|bn_t)\.(\w+)")
_CTP_CONV_KEY = re.compile(r"(layer\d\.\d+)\.conv([12])\.(conv|conv_s|bn_s|conv_t)\.(\w+)")
_CTP_BN_KEY = re.compile(r"(layer\d\.\d+)\.bn([12])\.(\w+)")
_CTP_DOWN_KEY = re.compile(r"(layer\d\.\d+)\.downsample(\.conv|_bn)\.(\w+)")
_CTP_PARTS = {"conv": "0", "conv_s": "0.0", "bn_s": "0.1", "conv_t": "0.3"}


def _from_ctp(key: str) -> str:
    """microsoft/CtP's R3D and R2Plus1D."""
    if found := _CTP_STEM_KEY.fullmatch(key):
        return f"stem.{_CTP_STEM[found[1]]}.{found[2]}"
    if found := _CTP_CONV_KEY.fullmatch(key):
        return f"{found[1]}.conv{found[2]}.{_CTP_PARTS[found[3]]}.{found[4]}"
    if found := _CTP_BN_KEY.fullmatch(key):
        return f"{found[1]}.conv{found[2]}.1.{found[3]}"
    if found := _CTP_DOWN_KEY.fullmatch(key):
        return f"{found[1]}.downsample.{'0' if found[2] == '.conv' else '1'}.{found[3]}"
    return key


_MMACTION_KEY = re.compile(r"((?:layer\d\.\d+\.)?)(conv(\d)|downsample)\.(conv|bn)\.(\w+)")


def from_mmaction(key: str) -> str:
    """Name in torchvision's ResNets of an entry of mmaction's, as xvjiarui/VFS saves them."""
    found = _MMACTION_KEY.fullmatch(key)
    if found is None:
        return key
    block, layer, number, kind, entry = found.groups()
    if layer == "downsample":
        return f"{block}downsample.{'0' if kind == 'conv' else '1'}.{entry}"
    return f"{block}{'conv' if kind == 'conv' else 'bn'}{number}.{entry}"


def _as_it_is(key: str) -> str:
    return key


def _behind_net(key: str) -> str:
    """Torchvision's and timm's own files for backbones that hold the network as ``net``."""
    return f"net.{key}"


_FLATTENED_KEY = re.compile(r"(features|\w+(?=\.\d+\.))\.(\w+\..*)")


def _flattened(key: str) -> str:
    """Timm's own files for a `TimmNet` whose feature extractor unrolls its outermost lists."""
    found = _FLATTENED_KEY.fullmatch(key)
    return f"net.{key}" if found is None else f"net.{found[1]}_{found[2]}"


def _behind_model(key: str) -> str:
    """Timm's own files for a `TimmNet` whose feature extractor holds the network as ``model``."""
    return f"net.model.{key}"


def _mmaction_behind_net(key: str) -> str:
    return f"net.{from_mmaction(key)}"


def _without_net(key: str) -> str:
    """A `TorchvisionVideo`'s weights for R3D18."""
    return key.removeprefix("net.")


def _ctp_behind_net(key: str) -> str:
    return f"net.{_from_ctp(key)}"


_NAMINGS: dict[str, Callable[[str], str]] = {
    "the backbone's own names": _as_it_is,
    "torchvision's names": _behind_net,
    "timm's names, lists unrolled": _flattened,
    "timm's names, for a feature extractor": _behind_model,
    "TorchvisionVideo's names": _without_net,
    "microsoft/CtP's names": _from_ctp,
    "microsoft/CtP's names, for torchvision's network": _ctp_behind_net,
    "mmaction's names": from_mmaction,
    "mmaction's names, for timm's network": _mmaction_behind_net,
}

_WRAPPERS = ("module.",)


@dataclass(frozen=True)
class Unwrapped:
    """A state dict without its wrappers.

    Attributes:
        state: What belongs to the backbone, or everything where nothing says what does.
        others: Names of entries outside the backbone, such as a head's.
    """

    state: dict[str, Tensor]
    others: tuple[str, ...]


def unwrap(state: Mapping[str, Tensor], prefix: str | None = None) -> Unwrapped:
    """Strips what training wraps around a backbone's names.

    Args:
        state: State dict as it was saved.
        prefix: Where the backbone lies in it; None takes ``backbone.`` where that exists.

    Returns:
        The backbone's entries and the names of the others.
    """
    entries = {key.replace("_orig_mod.", ""): value for key, value in state.items()}
    for wrapper in _WRAPPERS:
        if entries and all(key.startswith(wrapper) for key in entries):
            entries = {key.removeprefix(wrapper): value for key, value in entries.items()}
    if prefix is None:
        prefix = "backbone." if any(key.startswith("backbone.") for key in entries) else ""
    inside = {
        key.removeprefix(prefix): value for key, value in entries.items() if key.startswith(prefix)
    }
    return Unwrapped(inside, tuple(key for key in entries if not key.startswith(prefix)))


def recognise(
    state: Mapping[str, Tensor], wanted: Collection[str]
) -> tuple[dict[str, Tensor], str]:
    """Finds the naming of a state dict.

    Args:
        state: Unwrapped state dict.
        wanted: Names of the backbone's entries.

    Returns:
        The state dict in the backbone's names, and what the naming it came in is called. Where
        no naming fits a single entry, the state dict as it is, and ``"none"``.
    """
    names = set(wanted)
    fits = {label: sum(rename(key) in names for key in state) for label, rename in _NAMINGS.items()}
    best = max(fits, key=lambda label: fits[label])  # the first of equals
    if fits[best] == 0:
        return dict(state), "none"
    rename = _NAMINGS[best]
    renamed = {rename(key) if rename(key) in names else key: value for key, value in state.items()}
    return renamed, best
