"""Human saliency: whether a network looks where people look (VITO, section 4.2, Table 2, A.8).

VITO's maps are its attention masks of all scales, scaled up and averaged. Networks without
attention are asked by gradients, as in Fel et al. (Harmonization, NeurIPS 2022).
"""

import json
from pathlib import Path
from typing import Literal, get_args

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lightning_vssl.backbones.base import Backbone
from lightning_vssl.backbones.weights import CONFIG_FILE, load_head
from lightning_vssl.evaluation.base import Batch, Evaluation
from lightning_vssl.metrics.alignment import HUMAN_CEILING, HumanAlignment
from lightning_vssl.nn.attention_pool import AttentionPool, average_masks

Source = Literal["auto", "attention", "gradient"]
Channels = Literal["mean", "max"]


def gradient_map(backbone: Backbone, frames: Tensor, channels: Channels = "mean") -> Tensor:
    """How much each pixel moves the pooled features.

    The gradient of half the squared length of the pooled features by the pixels, in absolute
    value. Differs from Harmonization, which differentiates the logit of the class: what was
    pretrained without labels has no classes.

    Args:
        backbone: A 2-D network.
        frames: Normalised, (B, 3, H, W).
        channels: How a pixel's three numbers become one.

    Returns:
        (B, H, W), not negative.
    """
    with torch.inference_mode(False), torch.enable_grad():
        pixels = frames.detach().clone().requires_grad_()
        pooled = backbone(pixels).mean((2, 3))  # (B, C)
        moved = torch.autograd.grad(pooled.float().square().sum() / 2, pixels)[0].abs()
    return moved.mean(1) if channels == "mean" else moved.amax(1)


class HumanSaliency(Evaluation):
    """Spearman correlation of saliency maps with those of people, over what people reach.

    Only ``test`` runs it. Results, in percent: ``alignment``, VITO's number (the mean correlation
    over the images, divided by that between people), and ``spearman``, the mean itself.

    Args:
        backbone: The network, or None to take the one that ``weights`` describes.
        weights: What was pretrained; for ``attention`` an export's folder, which holds the head.
        source: ``attention``: the masks of all scales, scaled up and averaged (section 4.2);
            ``gradient``: see `gradient_map`; ``auto``: attention where the export's folder holds
            it, gradients where it does not and for an untouched network.
        channels: How ``gradient`` takes the three channels together.
        ceiling: Correlation between people.
        view: Makes the views; None normalises as the backbone wants its pixels.
        paper: The paper's numbers, for instance ``{"alignment": 47.7}``.

    Raises:
        ValueError: If an option is unknown, the network is not a 2-D one, or there is no attention
            that fits it.
    """

    def __init__(
        self,
        *,
        backbone: Backbone | None = None,
        weights: str | None = None,
        source: Source = "auto",
        channels: Channels = "mean",
        ceiling: float = HUMAN_CEILING,
        view: nn.Module | None = None,
        paper: dict[str, float] | None = None,
    ) -> None:
        if source not in get_args(Source):
            raise ValueError(f"source must be auto, attention or gradient, got {source!r}")
        if channels not in get_args(Channels):
            raise ValueError(f"channels must be mean or max, got {channels!r}")
        super().__init__(
            backbone=backbone,
            weights=weights,
            view=view,
            augment=None,
            clips_at_once=None,
            paper=paper,
        )
        if self.backbone.dims != 2:
            raise ValueError(
                f"HumanSaliency asks image networks, and {type(self.backbone).__name__} is one "
                "over time and space"
            )
        self.channels: Channels = channels
        self.metric = HumanAlignment(ceiling)
        self.attention: AttentionPool | None = None
        if source == "attention" or (source == "auto" and _holds_attention(weights)):
            self.attention = _attention(self.backbone, weights)
        self.source: Source = "gradient" if self.attention is None else "attention"
        rank_zero_info(f"saliency by {self.source}")
        self.eval().requires_grad_(False)

    def maps_of(self, frames: Tensor) -> Tensor:
        """Saliency of images.

        Args:
            frames: Normalised, (B, 3, H, W).

        Returns:
            (B, H, W).
        """
        if self.attention is None:
            return gradient_map(self.backbone, frames, self.channels)
        stages = self.backbone.stages[-len(self.attention.channels) :]
        _, masks = self.attention(list(self.backbone.features(frames, stages).values()))
        height, width = frames.shape[-2:]
        return average_masks(masks, (height, width))

    def on_fit_start(self) -> None:
        """There is nothing to train.

        Raises:
            ValueError: Always.
        """
        raise ValueError("HumanSaliency trains nothing: run test, not fit")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds the images of a batch."""
        self.note_input(batch)
        if "human" not in batch:
            raise ValueError(
                "HumanSaliency compares with maps of people, and the batch has no 'human': use "
                "ClickMe"
            )
        maps = self.maps_of(batch["views"][:, 0, :, 0])
        self.metric.update(maps, batch["human"], batch["index"])

    def on_test_epoch_end(self) -> None:
        """Averages, logs and writes the result."""
        results = {name: 100 * value for name, value in self.metric.compute().items()}
        counted = {"images": self.metric.images, "undefined": self.metric.undefined}
        self.metric.reset()
        self.log_dict(
            {f"test/{name}": value for name, value in results.items()}, rank_zero_only=True
        )
        self.report("test", results, counted)

    def protocol(self) -> dict[str, object]:
        """The arguments that make up the protocol."""
        return {
            **super().protocol(),
            "source": self.source,
            "channels": self.channels if self.source == "gradient" else None,
            "ceiling": self.metric.ceiling,
        }


def _holds_attention(weights: str | None) -> bool:
    """Whether an export's folder has the head; a file cannot tell."""
    if weights is None:
        return False
    if not Path(weights).is_dir():
        raise ValueError(
            f"source=auto cannot tell from {weights}, which is no export's folder, whether there "
            "is attention: export the checkpoint first (lightning-vssl export), or set source: "
            "gradient"
        )
    heads = json.loads((Path(weights) / CONFIG_FILE).read_text(encoding="utf-8")).get("heads", {})
    return "attention" in heads


def _attention(backbone: Backbone, weights: str | None) -> AttentionPool:
    """The head that was exported beside a backbone, checked against it."""
    if weights is None or not Path(weights).is_dir():
        raise ValueError(
            f"source=attention needs the attention of VITO, which stands in an export's folder; "
            f"got weights={weights!r}: export the checkpoint first (lightning-vssl export), or set "
            "source: gradient"
        )
    head = load_head(weights, "attention")
    if not isinstance(head, AttentionPool) or head.hidden is None:
        raise ValueError(
            f"the head 'attention' of {weights} is a {type(head).__name__} without masks"
        )
    own = [backbone.stage_channels[name] for name in backbone.stages[-len(head.channels) :]]
    if own != list(head.channels):
        raise ValueError(
            f"the attention of {weights} is over maps of {list(head.channels)} channels, and "
            f"{type(backbone).__name__} has {own}"
        )
    return head
