"""SlowFast against pytorchvideo's own network."""

import pytest
import torch
import torch.nn.functional as F
from pytorchvideo.models import hub

from lightning_vssl.backbones import PytorchvideoNet, SlowFast, load_weights, restride

FRAMES, SIDE = 16, 32
ORDER = [0, 5, 10, 15]  # of 16 frames, by the release's pack_pathway_output


def rand(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def pair(tmp_path):
    """Their network, its pooling fitted to small clips, and ours with its weights."""
    torch.manual_seed(0)
    theirs = hub.slowfast_r50(
        stem_dim_outs=(8, 1),
        head_pool_kernel_sizes=((FRAMES // 4, SIDE // 32, SIDE // 32), (FRAMES, 1, 1)),
    ).eval()
    for parameter in theirs.parameters():  # the last norm of each block starts at zero
        parameter.data.add_(0.01)
    torch.save({"model_state": theirs.state_dict()}, tmp_path / "theirs.pyth")
    ours = SlowFast("slowfast_r50", width=8).eval()
    report = load_weights(ours, tmp_path / "theirs.pyth", echo=False)
    assert not report.missing
    assert report.unexpected == ("blocks.6.proj.weight", "blocks.6.proj.bias")
    return theirs, ours


def test_the_maps_mean_is_what_pytorchvideo_classifies_by(tmp_path):
    theirs, ours = pair(tmp_path)
    clip = rand(2, 3, FRAMES, SIDE, SIDE)
    with torch.no_grad():
        wanted = theirs([clip[:, :, ORDER], clip.clone()])
        pooled = F.adaptive_avg_pool3d(ours(clip), 1)
        torch.testing.assert_close(theirs.blocks[-1](pooled), wanted, rtol=1e-5, atol=1e-5)
    assert wanted.std() > 1e-3


def test_stages_hold_both_pathways(tmp_path):
    theirs, ours = pair(tmp_path)
    clip = rand(2, 3, FRAMES, 64, SIDE)
    both = [clip[:, :, ORDER], clip.clone()]
    with torch.no_grad():
        maps = ours.features(clip, ours.stages)
        for number, (stage, found) in enumerate(maps.items()):
            both = theirs.blocks[number](both)
            slow = both[0].shape[1]
            assert torch.equal(found[:, :slow], both[0])
            for frame in range(FRAMES // 4):
                part = both[1][:, :, 4 * frame : 4 * frame + 4].mean(2)
                torch.testing.assert_close(found[:, slow:, frame], part)
            space = ours.stage_strides[stage][1]
            assert found.shape[1:] == (ours.stage_channels[stage], 4, 64 // space, SIDE // space)


def test_frames_are_filled_and_every_weight_learns():
    network = SlowFast("slowfast_r50", width=8)
    clip = rand(2, 3, 6, SIDE, SIDE)
    last = clip[:, :, -1:].expand(-1, -1, 2, -1, -1)
    network(clip).square().sum().backward()
    assert not [name for name, one in network.named_parameters() if one.grad is None]
    network.eval()
    torch.testing.assert_close(network(clip), network(torch.cat([clip, last], 2)), rtol=0, atol=0)
    rebuilt = SlowFast(**network.config["init_args"])
    assert rebuilt.config == network.config


def test_strides_can_be_taken_out_of_both_pathways():
    network = SlowFast("slowfast_r50", width=8).eval()
    clip = rand(1, 3, 4, 64, 64)
    before = network(clip)
    restride(network, ("layer4",))
    after = network(clip)
    assert network.stride == (4, 16)
    assert after.shape[3:] == (4, 4)
    torch.testing.assert_close(after[..., ::2, ::2], before)


def test_published_network():
    with torch.device("meta"):
        ours, theirs = SlowFast("slowfast_r50"), hub.slowfast_r50()
    count = sum(p.numel() for p in ours.parameters())
    assert count == sum(p.numel() for p in theirs.parameters()) - (2304 * 400 + 400)
    assert count / 1e6 == pytest.approx(34.57 - 0.92, abs=0.01)  # the model zoo's 34.57 M
    assert ours.num_features == 2304


def test_refused():
    with pytest.raises(ValueError, match="width must be a multiple of 8, got 12"):
        SlowFast(width=12)
    with pytest.raises(ValueError, match="one of slowfast_r50, slowfast_r101"):
        SlowFast("slowfast_r50_detection")
    with pytest.raises(ValueError, match="got 'slowfast_r50'; SlowFast is SlowFast"):
        PytorchvideoNet("slowfast_r50")
    with pytest.raises(ValueError, match="which takes boxes beside the clip"):
        PytorchvideoNet("slow_r50_detection")
