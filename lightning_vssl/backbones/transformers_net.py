"""VideoMAE, V-JEPA 2 and DINOv2 of transformers behind the backbone contract.

VideoMAE: Tong et al. 2022. V-JEPA 2: Assran et al. 2025. DINOv2: Oquab et al. 2023, with registers
Darcet et al. 2024. transformers (the extra ``hub``) is imported where it is used: only a recipe
that names this class needs it.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn

from lightning_vssl.backbones.base import IMAGENET_PIXELS, Pixels, as_pixels
from lightning_vssl.backbones.tokens import STAGES, TokenBackbone, Tokens, filled, quarters

TransformersName = Literal[
    "videomae_small",
    "videomae_base",
    "videomae_large",
    "videomae_huge",
    "vjepa2_large",
    "vjepa2_huge",
    "vjepa2_giant",
    "dinov2_small",
    "dinov2_base",
    "dinov2_large",
    "dinov2_giant",
    "dinov2_registers_small",
    "dinov2_registers_base",
    "dinov2_registers_large",
    "dinov2_registers_giant",
]

# Settings of the published configurations that are not transformers' defaults.
_HEADS = {"small": (384, 6), "base": (768, 12), "large": (1024, 16), "huge": (1280, 16)}
_DEPTHS = {"small": 12, "base": 12, "large": 24, "huge": 32}
_GIANTS: dict[str, dict[str, object]] = {
    "vjepa2": {"hidden_size": 1408, "num_hidden_layers": 40, "num_attention_heads": 22},
    "dinov2": {"hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 24},
}
_OWN: dict[str, dict[str, object]] = {
    "videomae": {"use_mean_pooling": False},  # the final norm, as pretrained
    "vjepa2": {},
    "dinov2": {"image_size": 518, "patch_size": 14},
    "dinov2_registers": {"image_size": 518, "patch_size": 14},
}
_GIANT_OWN: dict[str, dict[str, object]] = {
    "vjepa2": {"mlp_ratio": 48 / 11},
    "dinov2": {"use_swiglu_ffn": True},
}


class TransformersNet(TokenBackbone):
    """A vision transformer of transformers without its classifier, decoder or predictor.

    VideoMAE and V-JEPA 2 take clips, DINOv2 single images. Stages: the ``stem`` (patches with
    their positions) and ``layer1`` to ``layer4``, a quarter of the blocks each, the last with the
    final norm where the network has one. Maps are made of the patches; class token and registers
    are left out. A clip is filled up to whole patches (`filled`).

    Sizes: DINOv2's position embedding is scaled as transformers scales it; V-JEPA 2's rotary
    positions count patches and so take any size (as transformers built for that size);
    VideoMAE's positions are a fixed table for ``config``'s ``num_frames`` and ``image_size``, and
    other clips are refused.

    Args:
        name: Which network, in a published size.
        config: Entries of transformers' ``config.json`` that differ from that size's, such as
            ``{"num_frames": 8}``; what the network has no entry for is refused.
        weights: Name of a repository on the hub, such as ``facebook/dinov2-base``, or a folder
            that transformers' ``save_pretrained`` wrote, in any precision; its ``config.json``
            leads where ``config`` says nothing. None for random weights.
        pixels: Mean and standard deviation of R, G, B in units of [0, 1].

    Raises:
        ValueError: If the network or an entry of ``config`` is unknown, or ``weights`` cannot be
            read, belong to another network, or are not all there.
        ImportError: If transformers is not installed.
    """

    def __init__(
        self,
        name: TransformersName = "videomae_base",
        *,
        config: Mapping[str, Any] | None = None,
        weights: str | None = None,
        pixels: Pixels = IMAGENET_PIXELS,
    ) -> None:
        if name not in get_args(TransformersName):
            known = ", ".join(get_args(TransformersName))
            raise ValueError(f"name must be one of {known}; got {name!r}")
        family, _, size = name.rpartition("_")
        made = _random(family, size, config) if weights is None else _read(name, weights, config)
        patches = next(m for m in made.net.modules() if isinstance(m, nn.Conv2d | nn.Conv3d))
        patch = tuple(int(side) for side in patches.stride)
        if patch[-1] != patch[-2]:
            raise ValueError(f"patches must be square; got {patch}")
        stride = (patch[0] if len(patch) == 3 else 1, patch[-1])
        super().__init__(
            channels=dict.fromkeys(STAGES, patches.out_channels),
            strides=dict.fromkeys(STAGES, stride),
            # The weights are not repeated: an export carries them in its own file.
            init_args={"name": name, "config": made.config, "pixels": as_pixels(pixels)},
            pixels=pixels,
            dims=3 if len(patch) == 3 else 2,
        )
        self.origin = None if weights is None else f"transformers: {weights}"
        self.family = family
        self.patch = patch
        self.net = made.net
        self._blocks_of = quarters(len(self._blocks))

    @property
    def _blocks(self) -> nn.ModuleList:
        found: nn.ModuleList = (self.net if self.family == "vjepa2" else self.net.encoder).layer
        return found

    def embed(self, x: Tensor) -> Tokens:
        """Patches with their positions.

        Args:
            x: Normalised clip, (B, 3, T, H, W), or (B, 3, H, W) for DINOv2.

        Returns:
            Its tokens, (B, N, C).

        Raises:
            ValueError: If the network is VideoMAE and the clip not of the size it was made for.
        """
        x = filled(x, self.patch)
        grid = tuple(n // unit for n, unit in zip(x.shape[2:], self.patch, strict=True))
        if self.dims == 2:
            values = self.net.embeddings(x)  # (B, 1 + R + h*w, C)
            return Tokens(values, grid, others=values.shape[1] - grid[0] * grid[1])
        frames = x.transpose(1, 2)  # (B, T, 3, H, W)
        if self.family == "vjepa2":
            return Tokens(self.net.embeddings(frames), grid)
        self._check_size(x)
        return Tokens(self.net.embeddings(frames, None), grid)

    def _check_size(self, x: Tensor) -> None:
        """Refuses a clip that VideoMAE's table of positions is not for."""
        config = self.net.config
        sides = config.image_size
        height, width = sides if isinstance(sides, tuple | list) else (sides, sides)
        wanted = (config.num_frames, height, width)
        if tuple(x.shape[2:]) != wanted:
            times = [" x ".join(str(side) for side in size) for size in (wanted, x.shape[2:])]
            raise ValueError(
                f"this VideoMAE takes clips of {times[0]} (frames x height x width): its "
                f"positions are a fixed table; got {times[1]}. Cut clips of that size, or build "
                "it for another by config's num_frames and image_size"
            )

    def advance(self, name: str, carried: Tokens) -> Tokens:
        """Runs a quarter of the blocks; the last with the final norm."""
        x, where = carried.values, self._places(carried)
        for index in self._blocks_of[name]:
            made = self._blocks[index](x, **where)
            x = made[0] if isinstance(made, tuple) else made
        norm = getattr(self.net, "layernorm", None)
        if name == STAGES[-1] and norm is not None:
            x = norm(x)
        return Tokens(x, carried.grid, carried.others)

    def _places(self, tokens: Tokens) -> dict[str, Tensor]:
        """Where V-JEPA 2's tokens lie, as its rotary attention wants to be told.

        It counts through a square grid, whose side it takes from the configuration; there are no
        weights behind it.
        """
        if self.family != "vjepa2":
            return {}
        times, height, width = tokens.grid
        side = max(height, width)
        for block in self._blocks:
            cast(Any, block).attention.grid_size = side
        if height == width:
            return {}
        cells = torch.arange(times * side * side, device=tokens.values.device)
        inside = cells.view(times, side, side)[:, :height, :width].flatten()
        return {"position_mask": inside.expand(len(tokens.values), -1)}


class _Made(NamedTuple):
    """A network, and the plain entries of its configuration that are not the defaults."""

    net: Any
    config: dict[str, object]


def _published(family: str, size: str) -> dict[str, object]:
    """Settings of a published size."""
    if size == "giant":
        kind = family.removesuffix("_registers")
        return {**_OWN[family], **_GIANTS[kind], **_GIANT_OWN[kind]}
    width, heads = _HEADS[size]
    found: dict[str, object] = {
        **_OWN[family],
        "hidden_size": width,
        "num_hidden_layers": _DEPTHS[size],
        "num_attention_heads": heads,
    }
    return {**found, "intermediate_size": 4 * width} if family == "videomae" else found


def _kinds(family: str) -> tuple[Any, Any]:
    """Configuration and network of a family, as transformers has them."""
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            "TransformersNet needs transformers: pip install 'lightning-vssl[hub]'"
        ) from error
    names = {
        "videomae": "VideoMAE",
        "vjepa2": "VJEPA2",
        "dinov2": "Dinov2",
        "dinov2_registers": "Dinov2WithRegisters",
    }
    stem = names[family]
    return getattr(transformers, f"{stem}Config"), getattr(transformers, f"{stem}Model")


def _entries(kind: Any) -> list[str]:  # noqa: ANN401
    """Names of a configuration's own entries."""
    return [name for name in kind.__annotations__ if not name.startswith(("_", "model_type"))]


def _checked(family: str, config: Mapping[str, Any] | None) -> dict[str, Any]:
    """The entries asked for; transformers would keep unknown ones in silence."""
    kind, _ = _kinds(family)
    known = _entries(kind)
    for entry in config or {}:
        if entry not in known:
            raise ValueError(
                f"config has no entry {entry!r} in {kind.__name__}; there are {', '.join(known)}"
            )
    return dict(config or {})


def _random(family: str, size: str, config: Mapping[str, Any] | None) -> _Made:
    own = _checked(family, config)
    kind, model = _kinds(family)
    settings = {**_published(family, size), **own}
    try:
        built = kind(**settings)
    except Exception as error:  # huggingface_hub's validation has errors of its own
        raise ValueError(f"config {own} does not make a {kind.__name__}: {error}") from error
    if family == "vjepa2":  # its predictor is not part of the backbone: why draw all of it
        built.pred_num_hidden_layers = 1
    return _Made(_kept(model(built)), own)


def _read(name: str, weights: str, config: Mapping[str, Any] | None) -> _Made:
    family, _, size = name.rpartition("_")
    own = _checked(family, config)
    kind, model = _kinds(family)
    published = _published(family, size)
    found = _configuration(name, weights, kind)
    plain = {**kind().to_dict(), **published}
    for entry in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
        wanted = own.get(entry, plain[entry])
        if getattr(found, entry) != wanted:
            raise ValueError(
                f"weights={weights!r} have {entry} {getattr(found, entry)}, {name} has {wanted}: "
                "name the size that the weights have, or say it in config"
            )
    for entry, value in own.items():
        setattr(found, entry, value)
    net = _loaded(name, weights, model, found)
    differing = {
        entry: value
        for entry in _entries(kind)
        if (value := getattr(found, entry)) != plain[entry]
        and not entry.startswith(("pred_", "decoder_"))
    }
    return _Made(_kept(net), differing)


def _configuration(name: str, weights: str, kind: Any) -> Any:  # noqa: ANN401
    """What stands in ``config.json``, if it is the network's."""
    from transformers import AutoConfig

    if weights.startswith(("/", ".", "~")) and not Path(weights).is_dir():
        raise ValueError(f"there is no folder weights={weights!r}")
    try:
        found = AutoConfig.from_pretrained(weights)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"transformers reads no network at weights={weights!r}: {error} (an export of this "
            "package goes to an evaluation's own weights, or to load_weights)"
        ) from error
    if not isinstance(found, kind):
        raise ValueError(
            f"weights={weights!r} are a {found.model_type}'s, name={name} is a {kind.model_type}"
        )
    return found


def _loaded(name: str, weights: str, model: Any, config: Any) -> Any:  # noqa: ANN401
    """The network with all its weights, in float32 whatever the file's precision."""
    from safetensors import SafetensorError

    try:
        net, told = model.from_pretrained(
            weights,
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # refused below, by name
            output_loading_info=True,
        )
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"weights={weights!r} cannot be read as {name}: {error}") from error
    wrong = [
        f"{key} {tuple(has)} for {tuple(wants)}" for key, has, wants in told["mismatched_keys"]
    ]
    if wrong:
        raise ValueError(
            f"weights={weights!r} do not fit {name} as config has it: {len(wrong)} entries have "
            f"other shapes: {', '.join(sorted(wrong)[:3])}"
        )
    lacking = sorted(key for key in told["missing_keys"] if not key.startswith("predictor."))
    if lacking:
        raise ValueError(f"weights={weights!r} lack {len(lacking)} entries: {lacking[:3]}, ...")
    # Heads and decoders may be left over, a part of the network may not.
    part = re.compile(rf"({model.base_model_prefix}\.)?(embeddings|encoder|layernorm)\.")
    over = sorted(key for key in told["unexpected_keys"] if part.match(key))
    over = [key for key in over if not key.endswith(".mask_token")]
    if over:
        raise ValueError(
            f"weights={weights!r} have {len(over)} entries that {name} lacks as config has it: "
            f"{over[:3]}, ..."
        )
    return net


def _kept(net: Any) -> nn.Module:  # noqa: ANN401
    """What a map is made of: no predictor, and no token for patches that are masked."""
    kept = net.encoder if hasattr(net, "predictor") else net
    if getattr(kept.embeddings, "mask_token", None) is not None:
        kept.embeddings.mask_token = None
    assert isinstance(kept, nn.Module)
    return kept.train()
