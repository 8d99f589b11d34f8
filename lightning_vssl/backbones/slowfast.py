"""SlowFast of pytorchvideo behind the backbone contract (Feichtenhofer et al., ICCV 2019).

pytorchvideo is imported where it is used.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_vssl.backbones.base import Pixels
from lightning_vssl.backbones.carrying import CarryingBackbone
from lightning_vssl.backbones.tokens import STAGES, filled

SlowFastName = Literal["slowfast_r50", "slowfast_r101", "slowfast_16x8_r101_50_50"]

_PIXELS: Pixels = ((0.45, 0.45, 0.45), (0.225, 0.225, 0.225))
_ALPHA = 4  # frames of the fast pathway to one of the slow
_BETA = 8  # channels of the slow pathway to one of the fast


@dataclass(frozen=True)
class Pathways:
    """What SlowFast passes from stage to stage.

    Attributes:
        slow: (B, C, T/4, h, w); but for the last stage with the fused channels of the fast one.
        fast: (B, C', T, h, w).
    """

    slow: Tensor
    fast: Tensor

    def as_map(self) -> Tensor:
        """Both, the fast one averaged over the frames that one of the slow spans."""
        return torch.cat([self.slow, F.avg_pool3d(self.fast, (_ALPHA, 1, 1))], dim=1)


class SlowFast(CarryingBackbone[Pathways]):
    """SlowFast of ``pytorchvideo.models.hub`` without its head.

    The fast pathway sees every frame of a clip, the slow one a quarter of them, spread evenly from
    the first to the last as the release takes them; a clip is filled to a multiple of 4 frames by
    repeating its last. The map has the channels of both: those of the fast pathway are averaged
    over 4 frames each, so that the map's mean is what the network's own head classifies by.
    ``slowfast_r50`` wants 32 frames at stride 2 (8 for the slow pathway).

    Parameters keep pytorchvideo's names (``blocks.0.multipathway_blocks.0.conv.weight``), so the
    ``model_state`` of its checkpoints loads as it is. Stages are the ``stem`` and ``layer1`` to
    ``layer4``, each with the fusion behind it.

    Args:
        name: Which network.
        width: Channels of the slow pathway's stem, a multiple of 8 (64 in all of them); its stages
            put out 4, 8, 16 and 32 times as many, the fast pathway an eighth.

    Raises:
        ValueError: If the network is not among those that exist, or ``width`` is no multiple of 8.
    """

    def __init__(self, name: SlowFastName = "slowfast_r50", *, width: int = 64) -> None:
        if name not in get_args(SlowFastName):
            raise ValueError(
                f"name must be one of {', '.join(get_args(SlowFastName))}; got {name!r}"
            )
        if width < _BETA or width % _BETA:
            raise ValueError(f"width must be a multiple of {_BETA}, got {width}")
        from pytorchvideo.models import hub

        slow = [width * times for times in (1, 4, 8, 16, 32)]
        fast = [channels // _BETA for channels in slow]
        fused = [2 * channels for channels in fast[:-1]] + [0]  # what fusion adds to the slow one
        super().__init__(
            channels={s: sum(one) for s, *one in zip(STAGES, slow, fast, fused, strict=True)},
            strides={
                s: (_ALPHA, space) for s, space in zip(STAGES, (4, 4, 8, 16, 32), strict=True)
            },
            init_args={"name": name, "width": width},
            pixels=_PIXELS,
            classifiers=("blocks.6",),  # behind the pooling
        )
        network = getattr(hub, name)(pretrained=False, stem_dim_outs=(width, width // _BETA))
        self.blocks = nn.ModuleList(list(network.blocks)[: len(STAGES)])

    def embed(self, x: Tensor) -> Pathways:
        """Runs both stems.

        Args:
            x: Normalised clip, (B, 3, T, H, W).

        Returns:
            Both pathways.
        """
        x = filled(x, (_ALPHA, 1, 1))
        frames = x.shape[2]
        chosen = torch.linspace(0, frames - 1, frames // _ALPHA).long().to(x.device)
        return self._run(0, Pathways(x.index_select(2, chosen), x))

    def advance(self, name: str, carried: Pathways) -> Pathways:
        """Runs one stage of both pathways and the fusion behind it."""
        return self._run(self.stages.index(name), carried)

    def _run(self, index: int, carried: Pathways) -> Pathways:
        slow, fast = self.blocks[index]([carried.slow, carried.fast])  # the list is its own
        return Pathways(slow, fast)
