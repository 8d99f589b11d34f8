"""The head of Catch-the-Patch: from a feature map and a query box to a trajectory."""

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align


class TrajectoryHead(nn.Module):
    """Predicts where a box goes, all frames in one shot.

    A temporal convolution squeezes the map to one slice, RoIAlign cuts the query box out of it,
    and a two-layer perceptron gives four numbers for each frame (CtP, section 3.2 and
    supplement F).

    Args:
        in_channels: Channels of the feature map.
        in_frames: Temporal size T' of the feature map.
        frames: Frames T of the clip, each of which gets a box.
        stride: Spatial stride of the feature map, in pixels.
        hidden: Channels of the squeezed map and of the perceptron's hidden layer.
        roi_size: Bins of RoIAlign per side.
        squeeze: Whether to squeeze time (supplement Table 3). Without it RoIAlign runs on each
            slice of the map and the perceptron sees all of them; the paper does not say what its
            ablation does instead, this is the nearest reading.

    Shape:
        - map: (B, in_channels, in_frames, H, W)
        - boxes: (B, K, 4), xyxy in pixels of the clip
        - output: (B, K, frames, 4), targets as of `lightning_vssl.losses.trajectory.encode`
    """

    def __init__(
        self,
        in_channels: int,
        in_frames: int,
        frames: int = 16,
        stride: int = 8,
        hidden: int = 512,
        roi_size: int = 5,
        squeeze: bool = True,
    ) -> None:
        super().__init__()
        self.in_frames = in_frames
        self.frames = frames
        self.stride = stride
        self.roi_size = roi_size
        self.temporal_conv: nn.Conv3d | None = None
        if squeeze:
            self.temporal_conv = nn.Conv3d(in_channels, hidden, (in_frames, 1, 1))
            nn.init.kaiming_normal_(self.temporal_conv.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(self.temporal_conv.bias)  # type: ignore[arg-type]
        width = hidden if squeeze else in_channels * in_frames
        self.fc1 = nn.Linear(width * roi_size**2, hidden)
        self.pred_head = nn.Linear(hidden, frames * 4)
        for layer in (self.fc1, self.pred_head):
            nn.init.normal_(layer.weight, std=0.001)
            nn.init.zeros_(layer.bias)

    def forward(self, feature_map: Tensor, boxes: Tensor) -> Tensor:
        """Predicts the trajectories of the boxes; see the class for shapes.

        Raises:
            ValueError: If the map's temporal size is not the one the head was built for.
        """
        if feature_map.shape[2] != self.in_frames:
            raise ValueError(
                f"the head was built for maps of {self.in_frames} time steps, got "
                f"{feature_map.shape[2]}: the clips are not as long as the method's `frames` says"
            )
        if self.temporal_conv is None:
            squeezed = feature_map.flatten(1, 2)  # (B, C * T', H, W)
        else:
            squeezed = self.temporal_conv(feature_map).squeeze(2).relu()  # (B, hidden, H, W)
        batch, count = boxes.shape[:2]
        # RoIAlign is a float32 operation: float64 stays, half precisions are lifted.
        exact = squeezed if squeezed.dtype == torch.float64 else squeezed.float()
        image = torch.arange(batch, device=boxes.device).repeat_interleave(count)
        rois = torch.cat([image[:, None].to(exact), boxes.flatten(0, 1).to(exact)], dim=1)
        regions = roi_align(
            exact,
            rois,
            output_size=self.roi_size,
            spatial_scale=1 / self.stride,
            sampling_ratio=2,
            aligned=True,
        )  # (B * K, hidden, roi_size, roi_size)
        hidden = self.fc1(regions.flatten(1).to(squeezed)).relu()
        targets: Tensor = self.pred_head(hidden)
        return targets.view(batch, count, self.frames, 4)
