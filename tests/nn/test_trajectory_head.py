"""The head's parameters, RoI pooling by hand, and its errors."""

import pytest
import torch

from lightning_vssl.nn.trajectory import TrajectoryHead


def test_paper_head_has_7_11_million_parameters():
    head = TrajectoryHead(in_channels=512, in_frames=2)
    expected = (512 * 512 * 2 + 512) + (512 * 25 * 512 + 512) + (512 * 64 + 64)
    assert sum(p.numel() for p in head.parameters()) == expected
    assert round(expected / 1e6, 2) == 7.11


def test_head_reads_the_map_inside_the_query_box_only():
    torch.manual_seed(0)
    head = TrajectoryHead(in_channels=4, in_frames=1, frames=2, stride=8, hidden=8).double()
    feature_map = torch.randn(1, 4, 1, 8, 8, dtype=torch.float64)
    box = torch.tensor([[[16.0, 16.0, 32.0, 32.0]]], dtype=torch.float64)
    before = head(feature_map, box)
    far = feature_map.clone()
    far[..., 6:, 6:] += 1  # cells 48..64 px: outside the box and outside bilinear reach
    assert torch.equal(before, head(far, box))
    near = feature_map.clone()
    near[..., 2:4, 2:4] += 1
    assert not torch.equal(before, head(near, box))


def test_linear_map_is_sampled_at_the_bin_centres():
    """On a map that is linear in x, bilinear sampling is exact: bins read their centres."""
    head = TrajectoryHead(
        in_channels=1, in_frames=1, frames=1, stride=8, hidden=1, roi_size=5, squeeze=False
    ).double()
    seen = {}
    head.fc1.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    # Cell i covers pixels 8 i to 8 i + 8, so its value, its centre in pixels, is 8 i + 4.
    ramp = (torch.arange(10, dtype=torch.float64) * 8 + 4).expand(1, 1, 1, 10, 10)
    x1, x2 = 13.0, 53.0
    head(ramp, torch.tensor([[[x1, 20.0, x2, 60.0]]], dtype=torch.float64))
    bins = [x1 + (x2 - x1) * (i + 0.5) / 5 for i in range(5)]
    torch.testing.assert_close(
        seen["x"].view(5, 5), torch.tensor(bins, dtype=torch.float64).expand(5, 5)
    )


def test_wrong_clip_length_is_named():
    head = TrajectoryHead(in_channels=4, in_frames=2)
    with pytest.raises(ValueError, match="built for maps of 2 time steps, got 1"):
        head(torch.zeros(1, 4, 1, 8, 8), torch.zeros(1, 3, 4))
