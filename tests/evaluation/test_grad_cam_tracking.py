"""Tracking by Grad-CAM: drawn squares, each step against loops, heads there and missing."""

import json

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from lightning_vssl.backbones.base import Backbone
from lightning_vssl.backbones.weights import export
from lightning_vssl.data.masks import write_mask
from lightning_vssl.datamodules.davis import DAVIS
from lightning_vssl.evaluation.grad_cam_tracking import GradCAMTracking, key_codes, query_heat
from lightning_vssl.metrics.heat_tracking import HeatTracking
from lightning_vssl.nn.heads import MLP
from tests.evaluation.small import OneLayer, Tensors, trainer
from tests.methods.frames import FrameNet
from tests.methods.momentum import small

BLACK = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class Colours(Backbone):
    """How much red, green and blue there is in blocks of 4 x 4 pixels."""

    def __init__(self, dims=2):
        super().__init__(
            channels={"only": 3},
            strides={"only": (1, 4)},
            init_args={"dims": dims},
            pixels=BLACK,
            dims=dims,
        )
        self.scale = nn.Parameter(torch.ones(()))

    def stage(self, name, x):
        return (F.avg_pool3d(x, (1, 4, 4)) if self.dims == 3 else F.avg_pool2d(x, 4)) * self.scale


def squares(root, frames=6, colours=("red", "lime"), names=("one", "other")):
    """Squares of 12 pixels that jump across a blue ground, in the layout of DAVIS."""
    for n, (name, colour) in enumerate(zip(names, colours, strict=True)):
        for t in range(frames):
            left, top = 4 * ((3 * t + n) % 6), 4 * ((2 * t) % 6)
            picture = Image.new("RGB", (32, 32), "blue")
            picture.paste(colour, (left, top, left + 12, top + 12))
            file = root / "JPEGImages" / "480p" / name / f"{t:05d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            picture.save(file, quality=100, subsampling=0)
            ids = torch.zeros(32, 32, dtype=torch.uint8)
            ids[top : top + 12, left : left + 12] = 1 + t % 2  # 2016: one object, whatever its id
            write_mask(root / "Annotations" / "480p" / name / f"{t:05d}.png", ids.numpy())
    lists = root / "ImageSets" / "2016"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("\n".join(names))
    return DAVIS(root, year=2016)


def test_squares_are_followed_by_their_colour(tmp_path):
    module = GradCAMTracking(backbone=Colours(), size=(32, 32), paper={"J_mean": 54.4})
    data = squares(tmp_path)
    (logged,) = trainer(tmp_path).test(module, data, verbose=False)
    result = json.loads((tmp_path / "result.json").read_text())
    # Bilinear scaling rounds the corners of a square of nine cells.
    assert result["results"]["J_mean"] == pytest.approx(logged["test/J_mean"], abs=1e-4)
    assert result["results"]["J_mean"] > 85
    assert result["results"]["J_recall"] == 100
    assert abs(result["results"]["J_decay"]) < 5
    told = result["sensitivity"]
    assert told["J_mean_by_threshold"]["0.5"] == pytest.approx(result["results"]["J_mean"])
    assert told["best_threshold_in_hindsight"]["J_mean"] >= result["results"]["J_mean"]
    assert told["first_mask_left_where_it_is"] < 25
    assert set(result["sequences"]) == {"one", "other"}
    assert result["paper"] == {"J_mean": 54.4}
    protocol = result["protocol"]
    assert protocol["head"] == "none: pooled features"
    assert protocol["mask"].endswith("above 0.5")
    assert protocol["input"] == {"frames": 1, "height": 32, "width": 32}
    assert protocol["data"]["year"] == 2016


def test_another_colour_is_not_found(tmp_path):
    # The key of each is the other's: what is hot is then not the square.
    data = squares(tmp_path)
    module = GradCAMTracking(backbone=Colours(), size=(32, 32))
    one, other = data.sequences("val")
    codes = key_codes(
        module.backbone, module.head, torch.cat([module.key_of(s) for s in (one, other)]), "running"
    )
    for sequence, own, foreign in ((one, 0, 1), (other, 1, 0)):
        values = []
        for code in (codes[own], codes[foreign]):
            metric = HeatTracking()
            truth = torch.stack(list(sequence.masks()))
            metric.update(module.heat(sequence, code), truth, 0)
            values.append(metric.compute()["J_mean"])
        assert values[0] > 0.85
        assert values[1] < 0.1


@pytest.mark.parametrize("dims", [2, 3])
def test_heat_is_the_gradient_through_the_whole_map(dims, tmp_path):
    sequence = squares(tmp_path).sequences("val")[0]
    module = GradCAMTracking(
        backbone=OneLayer(dims=dims), size=(16, 16), frames=3, queries_at_once=3
    )
    torch.manual_seed(0)
    module.head = MLP(6, (5,), 4).eval()
    backbone, length = module.backbone, 3 if dims == 3 else 1
    small = [
        F.interpolate(f[None], (16, 16), mode="bilinear", antialias=True)[0] / 255
        for f in sequence.frames.frames()
    ]
    mask = F.interpolate((sequence.mask(0) > 0).float()[None, None], (16, 16), mode="nearest-exact")

    def asked(frames):
        clip = torch.stack(frames, dim=1)[None]  # (1, 3, T, H, W)
        return backbone(clip if dims == 3 else clip[:, :, 0])

    key = asked([small[0] * mask[0]] * length).flatten(2).mean(2)
    code = F.normalize(module.head(key), dim=1)
    found = module.heat(
        sequence, key_codes(backbone, module.head, module.key_of(sequence), "running")[0]
    )
    assert len(found) == len(small) - 2
    for t in range(1, len(small) - 1):
        around = [small[t - 1], small[t], small[t + 1]] if dims == 3 else [small[t]]
        maps = asked(around).detach().requires_grad_()
        cosine = F.cosine_similarity(module.head(maps.flatten(2).mean(2)), code)
        slopes = torch.autograd.grad(cosine.sum(), maps)[0].flatten(2).mean(2)
        cam = torch.einsum("bc...,bc->b...", maps, slopes).relu().detach()[0]
        wanted = cam[1] if dims == 3 else cam
        torch.testing.assert_close(found[t - 1], wanted, rtol=1e-4, atol=1e-6)
        assert wanted.max() > 0


def test_frames_beyond_the_ends_are_the_first_and_the_last(tmp_path):
    sequence = squares(tmp_path, frames=3).sequences("val")[0]
    seen = []

    class Looking(Colours):
        def stage(self, name, x):
            seen.append(x.clone())
            return super().stage(name, x)

    module = GradCAMTracking(backbone=Looking(dims=3), size=(32, 32), frames=6)
    frames = torch.stack(list(sequence.frames.frames())) / 255
    heat = module.heat(sequence, torch.tensor([1.0, 0.0, 0.0]))
    assert heat.shape == (1, 8, 8)
    torch.testing.assert_close(seen[0][0].transpose(0, 1), frames[[0, 0, 0, 1, 2, 2]])
    key = module.key_of(sequence)
    assert torch.equal(key[:, :, 0], key[:, :, 5])
    assert (key[0, 2] == 0).float().mean() > 0.8  # no blue ground is left


def test_keys_take_their_own_statistics_or_the_running_ones(tmp_path):
    data = squares(tmp_path)
    module = GradCAMTracking(backbone=OneLayer(dims=2), size=(32, 32))
    module.backbone.norm.running_mean.fill_(0.3)
    keys = torch.cat([module.key_of(sequence) for sequence in data.sequences("val")])
    before = {k: v.clone() for k, v in module.state_dict().items()}
    running = key_codes(module.backbone, module.head, keys, "running")
    batch = key_codes(module.backbone, module.head, keys, "batch")
    alone = torch.cat([key_codes(module.backbone, module.head, k[None], "running") for k in keys])
    torch.testing.assert_close(alone, running)
    assert not torch.allclose(batch, running, atol=1e-2)
    mean, var = keys.mean((0, 2, 3, 4)), keys.var((0, 2, 3, 4), correction=0)
    normed = (keys[:, :, 0] - mean[:, None, None]) / (var + 1e-5).sqrt()[:, None, None]
    pooled = module.backbone.conv(normed).mean((2, 3))
    torch.testing.assert_close(batch, F.normalize(pooled, dim=1))
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert not module.backbone.norm.training


def exported(folder, **options):
    """A small MoCo of frames as `lightning-vssl export` leaves it."""
    method = small("MoCo of frames", **options)
    checkpoint = {"state_dict": method.state_dict()}
    method.on_save_checkpoint(checkpoint)
    folder.mkdir(parents=True)
    torch.save(checkpoint, folder / "last.ckpt")
    return method, export(folder / "last.ckpt", folder / "export").folder


def test_the_head_of_the_export_is_asked(tmp_path):
    method, folder = exported(tmp_path / "run")
    data = squares(tmp_path / "davis")
    module = GradCAMTracking(weights=str(folder), size=(32, 32))
    trainer(tmp_path).test(module, data, verbose=False)
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["method"], result["protocol"]["head"]) == ("MoCo", "projector")
    x = torch.randn(4, method.projector.in_features)
    torch.testing.assert_close(module.head(x), method.projector(x))
    clip = torch.rand(2, 3, 1, 32, 32)
    code = F.normalize(torch.randn(1, 8), dim=1)
    own = query_heat(method.eval().backbone, method.projector, clip, code)
    torch.testing.assert_close(query_heat(module.backbone, module.head, clip, code), own)
    # Without its head the same network is asked by its features.
    assert isinstance(GradCAMTracking(weights=str(folder), head=None).head, nn.Identity)


def test_what_lacks_the_head_says_so(tmp_path):
    _, folder = exported(tmp_path / "run")
    with pytest.raises(ValueError, match=r"last\.ckpt is none: export the checkpoint first"):
        GradCAMTracking(backbone=FrameNet(), weights=str(tmp_path / "run" / "last.ckpt"))
    with pytest.raises(ValueError, match=r"not the head 'attention'.*name another head, or set"):
        GradCAMTracking(weights=str(folder), head="attention")
    config = json.loads((folder / "config.json").read_text())
    config["heads"] = {}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"holds no heads, not the head 'projector'.*head: null"):
        GradCAMTracking(weights=str(folder))


def test_bad_input(tmp_path):
    def tracking(**changes):
        return GradCAMTracking(**{"backbone": Colours(), "size": (32, 32), **changes})

    with pytest.raises(ValueError, match="key_norms must be batch or running, got 'own'"):
        tracking(key_norms="own")
    with pytest.raises(ValueError, match="frames=0, queries_at_once=16"):
        tracking(frames=0)
    with pytest.raises(ValueError, match=r"threshold must lie in \[0, 1\)"):
        tracking(threshold=1.0)
    with pytest.raises(ValueError, match="Tensors has no videos with masks: use DAVIS"):
        trainer(tmp_path).test(tracking(), Tensors(test=[{"index": 0}]), verbose=False)
    with pytest.raises(ValueError, match="trains nothing: run test"):
        tracking().on_fit_start()
    short = squares(tmp_path / "short", frames=2)
    with pytest.raises(ValueError, match="one: 2 frames; three or more"):
        trainer(tmp_path).test(tracking(), short, verbose=False)


def test_statistics_of_one_key():
    """A head with batch norms cannot take them from one sequence; by itself each goes."""
    head = MLP(3, (4,), 2, norm="batch").eval()
    keys = torch.rand(1, 3, 1, 8, 8)
    with pytest.raises(ValueError, match="set key_norms: running"):
        key_codes(Colours().eval(), head, keys, "batch")
    assert key_codes(Colours().eval(), head, keys, "running").shape == (1, 2)
    two = key_codes(Colours().eval(), head, keys.expand(2, -1, -1, -1, -1), "batch")
    assert two.shape == (2, 2)
