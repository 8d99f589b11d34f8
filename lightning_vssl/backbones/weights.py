"""Backbones on disk: strict loading, and the export that other programs read.

An export is a folder: ``backbone.safetensors``, ``config.json`` and, where the method has heads
that an evaluation uses, ``heads.safetensors``. Loading is strict: an entry that is missing, that
has another shape or that nothing accounts for is an error, so that no network is ever evaluated
with half of its weights. Files are read without unpickling objects.
"""

import contextlib
import hashlib
import importlib
import json
import math
import os
import pickle
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lightning_vssl import __version__
from lightning_vssl.backbones.base import Backbone, Pixels
from lightning_vssl.backbones.inflate import inflate_resnet, is_resnet_2d
from lightning_vssl.backbones.naming import Unwrapped, official_heads, recognise, unwrap
from lightning_vssl.backbones.padding import needs_padding, pads_as_tensorflow
from lightning_vssl.backbones.tensorflow import PIXELS as TENSORFLOW_PIXELS
from lightning_vssl.backbones.tensorflow import convert, read_npz
from lightning_vssl.nn.heads import MLP

BACKBONE_FILE = "backbone.safetensors"
CONFIG_FILE = "config.json"
HEADS_FILE = "heads.safetensors"

_FORMAT = 1
_CONTAINERS = ("state_dict", "model_state", "model")  # Lightning and mmcv, pytorchvideo, RSPNet
_OWN_PREFIX = "backbone."


@runtime_checkable
class Configured(Protocol):
    """A module that knows the plain data which rebuilds it, as `Backbone` does."""

    @property
    def config(self) -> dict[str, object]:
        """``{"class_path": ..., "init_args": ...}``."""


@dataclass(frozen=True)
class LoadReport:
    """What a file gave to a backbone.

    Attributes:
        path: The file or folder.
        naming: The naming recognised.
        loaded: Entries (parameters and buffers) loaded.
        total: Entries the backbone has.
        missing: Entries kept as they were: at most counters of batch norms, which older files do
            not hold and inference does not use.
        unexpected: Entries of the file that belong to other modules, such as a classifier.
    """

    path: str
    naming: str
    loaded: int
    total: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self) -> str:
        """One line."""
        return (
            f"{self.path}: {self.loaded} of {self.total} entries loaded ({self.naming}); "
            f"missing: {_grouped(self.missing)}; left over: {_grouped(self.unexpected)}"
        )


@dataclass(frozen=True)
class ExportReport:
    """What was exported.

    Attributes:
        folder: The folder written.
        method: The method or evaluation that trained the backbone.
        class_path: The backbone's class.
        parameters: Number of parameters and buffers' elements in the file.
        sha256: Hash of ``backbone.safetensors``.
        heads: Names of the heads written beside it.
    """

    folder: Path
    method: str
    class_path: str
    parameters: int
    sha256: str
    heads: tuple[str, ...]


def sha256(path: str | Path) -> str:
    """Hashes a file of weights; for an export folder its ``backbone.safetensors``.

    Args:
        path: File or export folder.

    Returns:
        The hash, 64 hexadecimal digits.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    file = Path(path)
    if file.is_dir():
        file = file / BACKBONE_FILE
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# Reading


def load_weights(
    backbone: Backbone, path: str | Path, *, inflate: bool = False, echo: bool = True
) -> LoadReport:
    """Loads weights into a backbone, strictly.

    Args:
        backbone: The network. A stride may differ from the one it was trained with; everything
            that has weights must not.
        path: An export folder, a ``.safetensors`` file, a checkpoint of this library, a checkpoint
            saved by microsoft/CtP, RSPNet, PreViTS or MoCo, a plain state dict of the same network
            in its own or torchvision's names, or CVRL's TensorFlow release as an ``.npz`` (see
            `lightning_vssl.backbones.tensorflow`).
        inflate: Whether the file is a 2-D ResNet's, such as VFS's, to be inflated (see
            `lightning_vssl.backbones.inflate`).
        echo: Whether to print the report, one line.

    Returns:
        What was loaded and what was left over.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read, or does not fit the backbone; the message says
            which naming was recognised and names what is missing, of another shape or unknown.
    """
    target = backbone.state_dict()
    renamed, naming, others = _renamed(backbone, path, inflate)
    report = _match(backbone, renamed, path=str(path), naming=naming, others=others)
    missing = {key: target[key] for key in report.missing}
    backbone.load_state_dict({**{k: renamed[k] for k in target if k in renamed}, **missing})
    if echo:
        print(report)
    return report


def _renamed(
    backbone: Backbone, path: str | Path, inflate: bool
) -> tuple[dict[str, Tensor], str, tuple[str, ...]]:
    """A file's entries in the backbone's names, the naming they came in, names of the others."""
    label, target = type(backbone).__name__, backbone.state_dict()
    if Path(path).suffix == ".npz":
        return _from_tensorflow(backbone, Path(path), inflate)
    file = _read_state(path)
    state, others = file.state, file.others
    if inflate:
        return inflate_resnet(state, target, name=label), "2-D ResNet, inflated", others
    if backbone.dims == 3 and is_resnet_2d(state):
        raise ValueError(
            f"{path} holds a 2-D ResNet, {label} is a network over time and space: set "
            "inflate=True to repeat its kernels over time (for an evaluation: lightning-vssl "
            f"export {path} --backbone {label} --inflate true), or name a 2-D backbone"
        )
    _refuse_padding(backbone, str(file.init_args.get("padding", "symmetric")), Path(path))
    renamed, naming = recognise(state, target)
    if file.prefix not in ("", _OWN_PREFIX):
        naming += f", below {file.prefix.removesuffix('.')}"
    return renamed, naming + _other_pixels(backbone, file.init_args.get("pixels")), others


def _refuse_padding(backbone: Backbone, trained: str, path: Path) -> None:
    """Refuses a network that samples its maps at other pixels than the one that was trained."""
    padded = "tensorflow" if pads_as_tensorflow(backbone) else "symmetric"
    if padded == trained or not needs_padding(backbone):
        return
    raise ValueError(
        f'{path} is of a network whose strided layers pad as padding="{trained}", this '
        f'{type(backbone).__name__} pads as "{padded}", which gives other features: build it with '
        f'padding="{trained}", or let an export name its network (--model.backbone null)'
    )


def _other_pixels(backbone: Backbone, trained: object) -> str:
    """What to say where a network takes its pixels otherwise than the one that was trained."""
    if trained is None or trained == _rows(backbone.pixels):
        return ""
    return f"; trained with pixels {trained}, this backbone takes {_rows(backbone.pixels)}"


def _rows(pixels: Pixels) -> list[list[float]]:
    """As JSON gives them."""
    return [list(row) for row in pixels]


def _from_tensorflow(
    backbone: Backbone, file: Path, inflate: bool
) -> tuple[dict[str, Tensor], str, tuple[str, ...]]:
    if inflate:
        raise ValueError(f"{file} is read as a 3-D network's: inflate=True is for a 2-D ResNet's")
    arrays = read_npz(file)
    try:
        found = convert(arrays, backbone.state_dict())
    except ValueError as error:
        raise ValueError(f"{file} does not fit {type(backbone).__name__}: {error}") from error
    _refuse_padding(backbone, "tensorflow", file)
    naming = found.naming + _other_pixels(backbone, _rows(TENSORFLOW_PIXELS))
    return found.state, naming, found.others


def load_backbone(path: str | Path) -> Backbone:
    """Builds the backbone that an export or a checkpoint of this library describes, and loads it.

    Args:
        path: An export folder, its ``backbone.safetensors``, or a checkpoint of this library,
            which gives the form that would be exported.

    Returns:
        The backbone on the CPU, in eval mode.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file does not describe a backbone, or is damaged.
    """
    location = Path(path)
    if location.is_dir() or location.suffix == ".safetensors":
        folder = location if location.is_dir() else location.parent
        config = _read_config(folder)
        expected = config.get("sha256")
        if sha256(location) != expected:
            raise ValueError(
                f"{location} is not the file that {folder / CONFIG_FILE} describes (its sha256 "
                f"is not {expected}): the folder was copied in part or mixed; export it again"
            )
    else:
        npz = location.suffix == ".npz"
        record = None if npz else _record_of(_read_pickle(location))
        if record is None:
            raise ValueError(
                f"{location} does not say which backbone it holds: build the backbone, then "
                "load_weights(backbone, path)"
            )
        config = _mapping(record, "downstream", location)
    backbone = build_backbone(config)
    load_weights(backbone, location, echo=False)
    return backbone.eval()


def load_head(path: str | Path, name: str) -> nn.Module:
    """Builds and loads a head that was exported beside a backbone.

    Args:
        path: Export folder.
        name: Name of the head.

    Returns:
        The head on the CPU, in eval mode.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If the export holds no such head.
    """
    folder = Path(path)
    config = _read_config(folder)
    heads = config.get("heads")
    if not isinstance(heads, dict) or name not in heads:
        held = ", ".join(heads) if isinstance(heads, dict) and heads else "no heads"
        raise ValueError(f"{folder} holds {held}, not the head {name!r} that is needed here")
    head = _build(heads[name])
    state = _read_safetensors(folder / HEADS_FILE)
    prefix = f"{name}."
    head.load_state_dict(
        {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}
    )
    return head.eval()


def build_backbone(config: Mapping[str, object]) -> Backbone:
    """Builds a backbone from its config.

    Args:
        config: ``{"class_path": ..., "init_args": ...}``, as `Backbone.config` gives it.

    Returns:
        The backbone with initial weights.

    Raises:
        ValueError: If the class cannot be found, is no backbone or refuses the arguments.
    """
    made = _build(config)
    if not isinstance(made, Backbone):
        raise ValueError(f"{config.get('class_path')} is not a Backbone of this library")
    return made


def _build(config: object) -> nn.Module:
    class_path = config.get("class_path") if isinstance(config, Mapping) else None
    init_args = config.get("init_args", {}) if isinstance(config, Mapping) else None
    if not isinstance(class_path, str) or not isinstance(init_args, Mapping):
        raise ValueError(f"a config must have class_path and init_args; got {config!r}")
    module, _, name = class_path.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"the class {class_path} cannot be imported: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ValueError(f"{class_path} is not a module")
    try:
        return kind(**init_args)
    except TypeError as error:
        raise ValueError(f"{class_path} does not take {dict(init_args)}: {error}") from error


@dataclass(frozen=True)
class _File:
    """A file's entries, and how it says its network was built."""

    entries: Unwrapped
    init_args: Mapping[str, object]

    @property
    def state(self) -> dict[str, Tensor]:
        """The backbone's entries."""
        return self.entries.state

    @property
    def others(self) -> tuple[str, ...]:
        """Names of the others."""
        return tuple(self.entries.others)

    @property
    def prefix(self) -> str:
        """What the backbone's names began with."""
        return self.entries.prefix


def _read_state(path: str | Path) -> _File:
    """Reads any of the files named in `load_weights`."""
    location = Path(path)
    if location.is_dir():
        location = location / BACKBONE_FILE
    if location.suffix == ".safetensors":
        found = unwrap(_read_safetensors(location))
        return _File(found, _init_args(_neighbour(location)))
    content = _read_pickle(location)
    record = _record_of(content)
    prefix = record.get("prefix") if record is not None else None
    entries: Mapping[str, object] = content
    for name in _CONTAINERS:
        inner = content.get(name)
        if isinstance(inner, Mapping):
            entries = inner
            break
    state = {key: value for key, value in entries.items() if isinstance(value, Tensor)}
    if not state:
        raise ValueError(f"{location} holds no tensors by name; it has {_first(list(entries))}")
    found = unwrap(state, prefix if isinstance(prefix, str) else None)
    return _File(found, _init_args((record or {}).get("downstream")))


def _neighbour(file: Path) -> object:
    """The description of an export beside its weights; None beside anyone else's file."""
    config = file.with_name(CONFIG_FILE)
    if file.name != BACKBONE_FILE or not config.is_file():
        return None
    return _read_config(file.parent)


def _init_args(config: object) -> Mapping[str, object]:
    found = config.get("init_args") if isinstance(config, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(
            f"{file} is not a readable safetensors file (cut short while copying?): {error}"
        ) from error


def _read_pickle(file: Path) -> dict[str, object]:
    """Reads what torch.save wrote, tensors and plain data only."""
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(_unsafe(file, error)) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(
            f"{file} is not a file that torch.load can read (cut short while copying?): {error}"
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{file} holds a {type(content).__name__}, not a state dict")
    return {str(key): value for key, value in content.items()}


def _unsafe(file: Path, error: Exception) -> str:
    """Says which objects a file would have to unpickle, and how to get its tensors out."""
    try:
        names = ", ".join(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except (ValueError, RuntimeError, pickle.UnpicklingError):  # not torch's zip format
        names = ""
    what = names or str(error).splitlines()[0]
    return (
        f"{file} holds Python objects beside its tensors ({what}). This library does not unpickle "
        "objects, since that runs code from the file. If you trust the file, take the tensors out "
        "once, where those objects can be imported: checkpoint = torch.load(file, "
        "weights_only=False); torch.save(checkpoint['state_dict'], 'weights.pth') (RSPNet's and "
        "PreViTS's files have ['model']); then load weights.pth"
    )


def _match(
    backbone: Backbone,
    state: Mapping[str, Tensor],
    *,
    path: str,
    naming: str,
    others: Sequence[str] = (),
) -> LoadReport:
    """Compares a file with a network, by name and shape."""
    label, target = type(backbone).__name__, backbone.state_dict()
    missing = tuple(key for key in target if key not in state)
    wrong = [key for key in target if key in state and state[key].shape != target[key].shape]
    extra = tuple(key for key in state if key not in target)
    # Counters of batch norms are not needed, and fit any other network's.
    weights = [key for key in target if not key.endswith("num_batches_tracked")]
    needed = [key for key in weights if key in missing]
    known = tuple(f"{name}." for name in backbone.classifiers)
    unknown = [key for key in extra if not key.startswith(known)]
    if len(needed) == len(weights):
        raise ValueError(
            f"{path} is not a checkpoint of {label}: none of its {len(weights)} weights is in the "
            f"file in any naming known here. The file has {_first(list(state))}; {label} has "
            f"{_first(weights)}"
        )
    problems = []
    if needed:
        problems.append(f"Missing: {_first(needed)}")
    if wrong:
        shapes = [
            f"{key} is {tuple(state[key].shape)} in the file and {tuple(target[key].shape)} in "
            f"{label}"
            for key in wrong
        ]
        problems.append(f"Of another shape: {_first(shapes, separator='; ')}")
    if unknown:
        problems.append(f"In the file, but not in {label}: {_first(unknown)}")
    if problems:
        fit = sum(key not in missing and key not in wrong for key in weights)
        raise ValueError(
            f"{path} does not fit {label} (naming recognised: {naming}): {fit} of "
            f"{len(weights)} weights match. {'. '.join(problems)}. Nothing was loaded; name the "
            "backbone, with the width and depth, that the file was trained with"
        )
    loaded = len(target) - len(missing)
    return LoadReport(path, naming, loaded, len(target), missing, (*extra, *others))


def _first(names: Sequence[str], count: int = 5, separator: str = ", ") -> str:
    rest = f"{separator}and {len(names) - count} more" if len(names) > count else ""
    return (separator.join(names[:count]) + rest) or "nothing"


def _grouped(names: Sequence[str]) -> str:
    """Names by their first part, counted: ``head (6), queue (1)``."""
    counts = Counter(name.split(".")[0] for name in names)
    return ", ".join(f"{group} ({count})" for group, count in counts.items()) or "none"


# Writing


def export_record(
    method: str,
    backbone: Backbone,
    prefix: str = _OWN_PREFIX,
    heads: Mapping[str, nn.Module] | None = None,
) -> dict[str, object]:
    """What a checkpoint must say for `export` to work: plain data, kept under ``"export"``.

    Args:
        method: Name of the method or evaluation.
        backbone: The network.
        prefix: Where its entries lie in the checkpoint's ``state_dict``, with the final dot.
        heads: Heads that an evaluation uses, by the attribute that holds them. Each must have a
            ``config`` as `Backbone` has.

    Returns:
        ``method``, ``backbone`` and ``downstream`` configs, ``prefix``, ``heads``.

    Raises:
        ValueError: If a head does not say how it is rebuilt.
    """
    described: dict[str, object] = {}
    for name, head in (heads or {}).items():
        if not isinstance(head, Configured):
            raise ValueError(
                f"the head {name!r} ({type(head).__name__}) needs a property config with "
                "class_path and init_args to be exported"
            )
        described[name] = {"prefix": f"{name}.", **head.config}
    return {
        "method": method,
        "backbone": backbone.config,
        "downstream": backbone.downstream(),
        "prefix": prefix,
        "heads": described,
    }


def is_plain(value: object) -> bool:
    """Whether a value is built of None, bool, int, float, str, list, tuple and dict alone."""
    if isinstance(value, Mapping):
        return all(isinstance(name, str) and is_plain(item) for name, item in value.items())
    if isinstance(value, list | tuple):
        return all(is_plain(item) for item in value)
    return value is None or type(value) in (bool, int, float, str)


def stamp(
    checkpoint: dict[str, object],
    method: str,
    backbone: Backbone,
    heads: Mapping[str, nn.Module] | None = None,
) -> None:
    """Makes a Lightning checkpoint readable with ``weights_only=True`` and ready for `export`.

    Hyper-parameters that are not plain data are dropped; the rest of the checkpoint stays.

    Args:
        checkpoint: What ``on_save_checkpoint`` was given; changed in place. The backbone's entries
            lie under ``backbone.`` in its ``state_dict``.
        method: Name of the method or evaluation.
        backbone: The network.
        heads: As `export_record` takes them.
    """
    saved = checkpoint.get("hyper_parameters")
    if isinstance(saved, Mapping):
        checkpoint["hyper_parameters"] = {k: v for k, v in saved.items() if is_plain(v)}
    checkpoint["export"] = export_record(method=method, backbone=backbone, heads=heads)


def export(
    checkpoint: str | Path,
    out: str | Path | None = None,
    overwrite: bool = False,
    *,
    backbone: Backbone | None = None,
    inflate: bool = False,
    method: str | None = None,
) -> ExportReport:
    """Writes the backbone of a checkpoint as a folder that needs neither Lightning nor pickle.

    The backbone is written in its downstream form (CtP: stride 2 in the last stage). The folder
    appears whole or not at all. With ``backbone`` the file may be any that `load_weights` reads,
    such as VFS's ResNet-50 or CVRL's release: evaluations then take the folder like every other.

    Args:
        checkpoint: A checkpoint of any method or evaluation of this library; anyone's file if
            ``backbone`` is given.
        out: Folder to write; ``export`` in the run's folder if None, or, with ``backbone``, the
            path of the file without its suffix.
        overwrite: Whether an earlier export in that place may be replaced.
        backbone: The network that the file's weights are for; it is left with them loaded. The
            heads of a file of RSPNet, PreViTS or MoCo are written too, as ``projector`` and
            ``speed_head``. None takes the network that the checkpoint describes.
        inflate: Whether the file is a 2-D ResNet's, to be inflated; needs ``backbone``.
        method: What trained the file, named beside results; needs ``backbone``.

    Returns:
        What was written.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        FileExistsError: If the folder exists and ``overwrite`` is False, or it is not an export.
        ValueError: If the file is not a checkpoint of this library, or is damaged; with
            ``backbone``, if the weights do not fit.
        OSError: If writing fails, for instance on a full disk; nothing is left behind.
    """
    source = Path(checkpoint)
    if backbone is not None:
        return _export_foreign(source, out, overwrite, backbone, inflate, method)
    if inflate or method is not None:
        raise ValueError("inflate and method are for files of others: name the backbone too")
    content = _read_pickle(source)
    record = _record_of(content)
    state = content.get("state_dict")
    if record is None or not isinstance(state, Mapping):
        raise ValueError(
            f"{source} was not saved by a method or evaluation of this library (it has no export "
            "record). For such a file name the backbone too: lightning-vssl export "
            f"{source} --backbone <class>"
        )
    folder = Path(out) if out is not None else _default_out(source)
    _refuse_existing(folder, overwrite)

    config = _mapping(record, "downstream", source)
    with torch.device("meta"):  # shapes are all that is needed
        backbone = build_backbone(config)
    state = {key.replace("_orig_mod.", ""): value for key, value in state.items()}
    weights = unwrap(state, str(record.get("prefix", _OWN_PREFIX))).state
    _match(backbone, weights, path=str(source), naming="this library's")
    heads = _head_weights(_mapping(record, "heads", source), state)
    return _write(folder, backbone, weights, record, content, heads)


def _export_foreign(
    source: Path,
    out: str | Path | None,
    overwrite: bool,
    backbone: Backbone,
    inflate: bool,
    method: str | None,
) -> ExportReport:
    folder = Path(out) if out is not None else source.with_suffix("")
    if folder == source:
        raise ValueError(f"{source} has no suffix to leave out: name the folder to write (out)")
    _refuse_existing(folder, overwrite)
    load_weights(backbone, source, inflate=inflate)
    heads = _foreign_heads(source)
    record = export_record(method or "unknown", backbone, heads=heads)
    weights = {
        f"{name}.{key}": value
        for name, head in heads.items()
        for key, value in head.state_dict().items()
    }
    return _write(folder, backbone, backbone.state_dict(), record, {}, weights)


def _foreign_heads(source: Path) -> dict[str, MLP]:
    """The projection heads of a file of RSPNet, PreViTS or MoCo; none of another."""
    if source.suffix == ".npz":
        return {}
    heads: dict[str, MLP] = {}
    for name, state in official_heads(_read_state(source).entries).items():
        widths = [value.shape for key, value in state.items() if key.endswith("weight")]
        hidden = [shape[0] for shape in widths[:-1]]
        heads[name] = MLP(widths[0][1], hidden, widths[-1][0])
        heads[name].load_state_dict(state)
    return heads


def _write(
    folder: Path,
    backbone: Backbone,
    weights: Mapping[str, Tensor],
    record: Mapping[str, object],
    content: Mapping[str, object],
    heads: Mapping[str, Tensor],
) -> ExportReport:
    with _atomic_folder(folder) as temporary:
        _write_safetensors(weights, temporary / BACKBONE_FILE)
        if heads:
            _write_safetensors(heads, temporary / HEADS_FILE)
        digest = sha256(temporary / BACKBONE_FILE)
        description = _describe(backbone, record, content, digest)
        (temporary / CONFIG_FILE).write_text(json.dumps(description, indent=2) + "\n")
    return ExportReport(
        folder=folder,
        method=str(record.get("method")),
        class_path=str(backbone.config["class_path"]),
        parameters=sum(p.numel() for p in backbone.parameters()),
        sha256=digest,
        heads=tuple(_mapping(record, "heads", folder)),
    )


def export_command(
    checkpoint: str,
    out: str | None = None,
    overwrite: bool = False,
    backbone: Backbone | None = None,
    inflate: bool = False,
    method: str | None = None,
) -> None:
    """Writes a checkpoint's backbone as backbone.safetensors and config.json.

    Args:
        checkpoint: A checkpoint of any method or evaluation, such as
            runs/ctp/seed1/checkpoints/last.ckpt; or, with --backbone, weights of others.
        out: Folder to write. Default: "export" in the run's folder; with --backbone, the path of
            the file without its suffix.
        overwrite: Replace an earlier export in that place.
        backbone: The network that weights of others are for, such as PytorchvideoResNet.
        inflate: The weights are a 2-D ResNet's: repeat its kernels over time.
        method: What trained the weights of others, named beside results.
    """
    report = export(checkpoint, out, overwrite, backbone=backbone, inflate=inflate, method=method)
    facts = {
        "written": str(report.folder),
        "trained by": report.method,
        "backbone": f"{report.class_path}, {report.parameters / 1e6:.2f} M parameters",
        "heads": ", ".join(report.heads) or "none",
        "sha256": report.sha256,
        "use it": f"load_backbone({str(report.folder)!r}), or --model.weights",
    }
    for name, value in facts.items():  # no table: in a narrow terminal it would cut the path
        print(f"{name:<12}{value}")


def _record_of(content: Mapping[str, object]) -> dict[str, object] | None:
    record = content.get("export")
    return dict(record) if isinstance(record, Mapping) else None


def _mapping(record: Mapping[str, object], name: str, source: Path) -> dict[str, object]:
    value = record.get(name)
    if not isinstance(value, Mapping):
        raise ValueError(f"the export record of {source} lacks {name!r}; it has {list(record)}")
    return dict(value)


def _default_out(checkpoint: Path) -> Path:
    folder = checkpoint.resolve().parent
    return (folder.parent if folder.name == "checkpoints" else folder) / "export"


def _refuse_existing(folder: Path, overwrite: bool) -> None:
    if not folder.exists():
        return
    if not overwrite:
        raise FileExistsError(f"{folder} exists: name another folder, or set overwrite to true")
    ours = {BACKBONE_FILE, CONFIG_FILE, HEADS_FILE}
    if not folder.is_dir() or {item.name for item in folder.iterdir()} - ours:
        raise FileExistsError(
            f"{folder} holds other things than an export, so it is not overwritten"
        )


def _head_weights(heads: Mapping[str, object], state: Mapping[str, object]) -> dict[str, Tensor]:
    """Entries of the heads as ``<name>.<entry>``."""
    found: dict[str, Tensor] = {}
    for name, head in heads.items():
        prefix = head.get("prefix") if isinstance(head, Mapping) else None
        if not isinstance(prefix, str):
            raise ValueError(f"the export record of the head {name!r} lacks its prefix")
        inside = {
            f"{name}.{key.removeprefix(prefix)}": value
            for key, value in state.items()
            if key.startswith(prefix) and isinstance(value, Tensor)
        }
        if not inside:
            raise ValueError(f"the checkpoint has no entries of the head {name!r} ({prefix}...)")
        found.update(inside)
    return found


def _describe(
    backbone: Backbone,
    record: Mapping[str, object],
    checkpoint: Mapping[str, object],
    digest: str,
) -> dict[str, object]:
    """The content of config.json."""
    heads = record.get("heads")
    mean, std = backbone.pixels
    return {
        "format": _FORMAT,
        **backbone.config,
        "layout": "BCTHW" if backbone.dims == 3 else "BCHW",
        "pixels": {"mean": mean, "std": std},
        "num_features": backbone.num_features,
        "stride": {"time": backbone.stride[0], "space": backbone.stride[1]},
        "method": record.get("method"),
        "pretraining": record.get("backbone"),
        "epoch": checkpoint.get("epoch"),
        "global_step": checkpoint.get("global_step"),
        "heads": {
            name: {key: value for key, value in head.items() if key != "prefix"}
            for name, head in (heads.items() if isinstance(heads, Mapping) else ())
        },
        "library": {"name": "lightning-vssl", "version": __version__},
        "sha256": digest,
    }


def _read_config(folder: Path) -> dict[str, object]:
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise FileNotFoundError(f"{folder} is not an export: it has no {CONFIG_FILE}")
    try:
        config = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not readable JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} does not describe a backbone")
    if config.get("format") != _FORMAT:
        raise ValueError(
            f"{file} has format {config.get('format')!r}; this version reads {_FORMAT}"
        )
    return config


def _write_safetensors(state: Mapping[str, Tensor], file: Path) -> None:
    # Contiguous copies: safetensors refuses views and shared storage.
    tensors = {key: value.detach().clone().contiguous() for key, value in state.items()}
    try:
        save_file(tensors, file, metadata={"format": "pt"})
    except SafetensorError as error:
        size = sum(math.prod(t.shape) * t.element_size() for t in tensors.values()) / 1e6
        raise OSError(f"{file} ({size:.1f} MB) could not be written: {error}") from error


@contextlib.contextmanager
def _atomic_folder(folder: Path) -> Iterator[Path]:
    """Gives a folder beside the wanted one, and moves it into place once it is filled."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield temporary
        for file in temporary.iterdir():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o777 & ~mask)  # mkdtemp's folders are private
        if folder.exists():
            old = temporary.with_name(temporary.name + "-old")
            folder.rename(old)
            temporary.rename(folder)
            shutil.rmtree(old)
        else:
            temporary.rename(folder)
    except OSError as error:
        raise OSError(f"{folder} could not be written, nothing was changed: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
