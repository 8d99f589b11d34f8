"""The head of a Siamese tracker: where in a search image does the exemplar lie?"""

import torch
from torch import Tensor, nn
from torch.nn import functional


def cross_correlate(exemplars: Tensor, searches: Tensor) -> Tensor:
    """Slides exemplar maps over search maps (SiamFC, equation 2).

    Args:
        exemplars: Maps of the target, (B, C, h, w), or (1, C, h, w) for all searches.
        searches: Maps to search in, (B, C, H, W), H at least h, W at least w.

    Returns:
        Sums of products over channels and cells, (B, H - h + 1, W - w + 1).

    Raises:
        ValueError: If the shapes do not fit.
    """
    fits = (
        exemplars.ndim == searches.ndim == 4
        and exemplars.shape[1] == searches.shape[1]
        and len(exemplars) in (1, len(searches))
        and all(a <= b for a, b in zip(exemplars.shape[2:], searches.shape[2:], strict=True))
    )
    if not fits:
        raise ValueError(
            "exemplars must be (B, C, h, w) or (1, C, h, w), and searches (B, C, H, W), no "
            f"smaller; got {tuple(exemplars.shape)} and {tuple(searches.shape)}"
        )
    if len(exemplars) == 1:
        return functional.conv2d(searches, exemplars)[:, 0]
    batch, _, height, width = searches.shape
    grouped = searches.reshape(1, -1, height, width)  # (1, B*C, H, W)
    return functional.conv2d(grouped, exemplars, groups=batch)[0]


class SiamFCHead(nn.Module):
    """Cross-correlation of two maps, scaled, after a 1 x 1 convolution of each where asked for.

    Without convolutions (SiamFC) it has nothing to train. VFS freezes the backbone and trains two
    convolutions, one for exemplars and one for search images.

    Args:
        in_channels: Channels of the maps.
        channels: Channels that the convolutions put out; None for no convolutions.
        scale: What the correlation is multiplied by, so that it can serve as a logit: the sum over
            16 x 16 cells of hundreds of channels is large (original: 0.001).

    Raises:
        ValueError: If ``channels`` is below 1 or ``scale`` not above 0.

    Shape:
        - exemplars: (B, in_channels, h, w) or (1, in_channels, h, w)
        - searches: (B, in_channels, H, W)
        - output: (B, H - h + 1, W - w + 1), float32 or the maps' own type where that is wider
    """

    def __init__(
        self, in_channels: int, channels: int | None = None, *, scale: float = 0.001
    ) -> None:
        super().__init__()
        if channels is not None and channels < 1:
            raise ValueError(f"channels must be at least 1 or null, got {channels}")
        if scale <= 0:
            raise ValueError(f"scale must be above 0, got {scale}")
        self.scale = scale
        self.exemplar: nn.Module = nn.Identity()
        self.search: nn.Module = nn.Identity()
        if channels is not None:
            self.exemplar = nn.Conv2d(in_channels, channels, 1)
            self.search = nn.Conv2d(in_channels, channels, 1)

    def forward(self, exemplars: Tensor, searches: Tensor) -> Tensor:
        """Gives the response maps; see the class for shapes."""
        # Half precision ends at 65,504, which a sum over a map passes.
        with torch.autocast(searches.device.type, enabled=False):
            wide = torch.promote_types(searches.dtype, torch.float32)
            kernels = self.exemplar(exemplars.to(wide))
            return self.scale * cross_correlate(kernels, self.search(searches.to(wide)))
