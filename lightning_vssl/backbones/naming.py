"""The names under which others save the same networks.

A checkpoint is first unwrapped (``module.`` of DistributedDataParallel, ``_orig_mod.`` of
torch.compile, ``backbone.`` of a method that owns the backbone, the query encoder of a method with
two), then its names are tried as they are and in each naming listed here; the naming that fits most
of the backbone's entries is taken.
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


_RESNET_KEY = re.compile(r"(layer\d\.\d+\.|)(conv|bn)(\d)\.(\w+)")


def from_resnet(key: str) -> str:
    """Name in R3D-18 and torchvision's video ResNets of an entry named as in a 2-D ResNet."""
    found = _RESNET_KEY.fullmatch(key)
    if found is None or (not found[1] and found[3] != "1"):
        return key
    block, kind, number, entry = found.groups()
    layer = f"{block}conv{number}" if block else "stem"
    return f"{layer}.{'0' if kind == 'conv' else '1'}.{entry}"


_FACTORED = {"spatial_conv": "0", "bn": "1", "temporal_conv": "3"}
_VCOP_STEM_KEY = re.compile(r"conv1\.(spatial_conv|bn|temporal_conv)\.(\w+)")
_VCOP_KEY = re.compile(
    r"conv([2-5])\.block1\.(conv1|conv2|downsampleconv)\.(spatial_conv|bn|temporal_conv)\.(\w+)"
)
_VCOP_BN_KEY = re.compile(r"conv([2-5])\.block1\.(bn1|bn2|downsamplebn)\.(\w+)")
_VCOP_BNS = {"bn1": "conv1.1", "bn2": "conv2.1", "downsamplebn": "downsample.1"}


def _from_vcop(key: str) -> str:
    """VCOP's R(2+1)D, which RSPNet and PreViTS train."""
    if key.startswith("bn1."):
        return f"stem.4.{key.removeprefix('bn1.')}"
    if found := _VCOP_STEM_KEY.fullmatch(key):
        return f"stem.{_FACTORED[found[1]]}.{found[2]}"
    if found := _VCOP_KEY.fullmatch(key):
        layer = "downsample" if found[2] == "downsampleconv" else found[2]
        return f"layer{int(found[1]) - 1}.0.{layer}.0.{_FACTORED[found[3]]}.{found[4]}"
    if found := _VCOP_BN_KEY.fullmatch(key):
        return f"layer{int(found[1]) - 1}.0.{_VCOP_BNS[found[2]]}.{found[3]}"
    return key


_C3D_KEY = re.compile(r"(conv|bn)([1-5])([ab]?)\.(\w+)")


def _from_c3d(key: str) -> str:
    """RSPNet's and PreViTS's C3D."""
    found = _C3D_KEY.fullmatch(key)
    if found is None:
        return key
    kind, number, letter, entry = found.groups()
    stage = "stem" if number == "1" else f"layer{int(number) - 1}"
    return f"{stage}.{'2' if letter == 'b' else '1'}.{'0' if kind == 'conv' else '1'}.{entry}"


# Where S3D-G's parts lie: RSPNet's names, then torchvision's.
_S3DG_PARTS = {"sepConv1": "stem", "basicConv3d": "layer1.1", "sep_conv2": "layer1.2"} | {
    f"sepInc_{stage}{'bcdef'[i]}": f"layer{stage - 1}.{i + 1}"
    for stage, blocks in ((3, 2), (4, 5), (5, 2))
    for i in range(blocks)
}
_S3D_PARTS = dict(zip((0, 2, 3, 5, 6, 8, 9, 10, 11, 12, 14, 15), _S3DG_PARTS.values(), strict=True))
_S3DG_KEY = re.compile(r"feature\.(\w+)\.(.+)")
_S3D_KEY = re.compile(r"features\.(\d+)\.(.+)")


def _from_s3dg(key: str) -> str:
    """RSPNet's and PreViTS's S3D-G."""
    found = _S3DG_KEY.fullmatch(key)
    if found is None or found[1] not in _S3DG_PARTS:
        return key
    entry = found[2].replace("sep_conv.", "").replace("excitation.", "2.conv.")
    entry = entry.replace("conv3d.", "0.").replace("bn.", "1.")
    return f"{_S3DG_PARTS[found[1]]}.{entry}"


def _from_s3d(key: str) -> str:
    """Torchvision's S3D, for `S3DG` without gates."""
    found = _S3D_KEY.fullmatch(key)
    if found is None or int(found[1]) not in _S3D_PARTS:
        return key
    return f"{_S3D_PARTS[int(found[1])]}.{found[2]}"


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
    "torchvision's names of a 2-D ResNet": from_resnet,
    "VCOP's names": _from_vcop,
    "RSPNet's names of C3D": _from_c3d,
    "RSPNet's names of S3D-G": _from_s3dg,
    "torchvision's names of S3D": _from_s3d,
}

_WRAPPERS = ("module.",)

# Where methods keep their backbone: this library's, RSPNet's and PreViTS's, MoCo's.
_PREFIXES = ("backbone.", "encoder_q.encoder.", "encoder_q.")


@dataclass(frozen=True)
class Unwrapped:
    """A state dict without its wrappers.

    Attributes:
        state: What belongs to the backbone, or everything where nothing says what does.
        others: Entries outside the backbone, such as a head's.
        prefix: What the backbone's names began with; empty where nothing says what belongs to it.
    """

    state: dict[str, Tensor]
    others: dict[str, Tensor]
    prefix: str


def unwrap(state: Mapping[str, Tensor], prefix: str | None = None) -> Unwrapped:
    """Strips what training wraps around a backbone's names.

    Args:
        state: State dict as it was saved.
        prefix: Where the backbone lies in it; None takes ``backbone.`` where that exists, else the
            query encoder of RSPNet and PreViTS (``encoder_q.encoder.``) or MoCo (``encoder_q.``).

    Returns:
        The backbone's entries, and the others under their own names.
    """
    entries = {key.replace("_orig_mod.", ""): value for key, value in state.items()}
    for wrapper in _WRAPPERS:
        if entries and all(key.startswith(wrapper) for key in entries):
            entries = {key.removeprefix(wrapper): value for key, value in entries.items()}
    if prefix is None:
        found = (one for one in _PREFIXES if any(key.startswith(one) for key in entries))
        prefix = next(found, "")
    inside = {
        key.removeprefix(prefix): value for key, value in entries.items() if key.startswith(prefix)
    }
    outside = {key: value for key, value in entries.items() if not key.startswith(prefix)}
    return Unwrapped(inside, outside, prefix)


_RSPNET_HEADS = {"encoder_q.fc1.2.": "projector", "encoder_q.fc2.2.": "speed_head"}
_LINEAR = ("weight", "bias")


def official_heads(file: Unwrapped) -> dict[str, dict[str, Tensor]]:
    """The projection heads in a file of RSPNet, PreViTS or MoCo.

    Args:
        file: What `unwrap` gave.

    Returns:
        State dicts for `lightning_vssl.nn.heads.MLP`, by the names of this library's heads:
        ``projector`` (RSPNet's ``fc1``, which tells videos apart; MoCo's ``fc``, of one layer or,
        in v2, of two) and, of a video network, ``speed_head`` (RSPNet's ``fc2``). Empty where the
        file has none. PreViTS's image networks hold an ``fc2`` too, which nothing trains.
    """
    heads: dict[str, dict[str, Tensor]] = {}
    if file.prefix == "encoder_q.encoder.":
        video = any(value.dim() == 5 for value in file.state.values())
        for prefix, name in _RSPNET_HEADS.items():
            layer = {f"layers.0.{k}": file.others.get(prefix + k) for k in _LINEAR}
            whole = {key: value for key, value in layer.items() if value is not None}
            if len(whole) == len(_LINEAR) and (video or name == "projector"):
                heads[name] = whole
    elif file.prefix == "encoder_q.":
        layers = {
            # MoCo v1's one layer, and v2's two with a ReLU between, count as MLP's do.
            f"layers.{key.removeprefix('fc.') if key[3:4].isdigit() else '0.' + key[3:]}": value
            for key, value in file.state.items()
            if key.startswith("fc.")
        }
        if layers:
            heads["projector"] = layers
    return heads


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
