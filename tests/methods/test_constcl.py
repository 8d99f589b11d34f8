"""ConST-CL as a whole: its options, its step against the paper in loops, what context does."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from lightning_vssl.augment.regions import RandomBoxes, RegionViews
from lightning_vssl.augment.views import VideoViews
from lightning_vssl.backbones import PytorchvideoResNet, YResNet
from lightning_vssl.losses.info_nce import nt_xent
from lightning_vssl.methods.constcl import ConSTCL
from lightning_vssl.methods.cvrl import CVRL
from tests.losses.test_regions import slow_loss
from tests.methods.test_cvrl import SGD, awake, batch, gradients
from tests.nn.test_regions import slow_pool

SMALL = {"width": 4, "depth": (1, 1, 1, 1)}


def small(y: bool = True, **options: object) -> ConSTCL:
    torch.manual_seed(0)
    settings = {
        "context_length": 1,
        "hidden": (16, 16, 16),
        "projection": 8,
        "decoder_width": 8,
        **options,
    }
    return ConSTCL(
        YResNet(**SMALL) if y else PytorchvideoResNet(**SMALL),
        RegionViews(VideoViews(), RandomBoxes(count=3)),
        SGD,
        **settings,
    )


def augmented(method: ConSTCL, size: int = 4, dtype: torch.dtype = torch.float64) -> dict:
    made = method.augment(batch(size, side=64))
    return {**made, "views": made["views"].to(dtype)}


def asked(method: ConSTCL, made: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Which frames and which regions of them."""
    where = method.slices(made["time"], made["key"])
    return where, method.places(made, where)


def count(method: nn.Module, statistics: bool = True) -> float:
    total = sum(p.numel() for p in method.parameters())
    if statistics:
        total += sum(b.numel() for n, b in method.named_buffers() if "running" in n)
    return total / 1e6


# Table 6 of the paper; Table 3 has the first and the last, its operations over two views.
TABLE_6 = [(None, 44.6, 45.6), (0, 77.7, 55.5), (1, 71.7, 55.6), (3, 71.7, 56.1), (5, 71.7, 56.5)]


@pytest.mark.parametrize(("context", "parameters", "operations"), TABLE_6)
def test_table_6(context: int | None, parameters: float, operations: float) -> None:
    with torch.device("meta"):
        method = (
            CVRL(PytorchvideoResNet(), nn.Identity(), SGD)
            if context is None
            else ConSTCL(YResNet(), nn.Identity(), SGD, context_length=context)
        ).eval()
        views, places = torch.zeros(1, 2, 3, 16, 224, 224), torch.zeros(1, 2, 8, 4)
        where = torch.full((1, 2), 4)
        with FlopCounterMode(display=False) as counter:
            if isinstance(method, CVRL):
                method.encode(views)
            else:
                method.encode(views, where, places)
    both = counter.get_total_flops() / 2e9
    assert count(method) == pytest.approx(parameters, rel=0.005)
    assert both / 2 == pytest.approx(operations, rel=0.005)
    if context is None:
        assert both == pytest.approx(91.2, rel=0.005)
    if context == 5:
        assert both == pytest.approx(113.0, rel=0.005)


def test_step_equals_the_paper_in_loops() -> None:
    """Norms in eval, so that every clip can go through the network by itself."""
    method = small().double().eval()
    awake(method)
    made = augmented(method)
    found = method._step(made)
    h, z, pooled = torch.zeros(4, 2, 3, 128).double(), torch.zeros(4, 2, 3, 128).double(), {}
    boxes = made["boxes"][:, :, 0] / 64
    maps = {}
    for b in range(4):
        for v in range(2):
            trunk = method.backbone.features(made["views"][b, v][None], ("layer3",))["layer3"]
            pooled[b, v] = method.backbone.stage("layer4", trunk).mean((2, 3, 4))[0]
            local = method.backbone.local(trunk)[0]  # (C, 2, 2, 2)
            maps[b, v] = local / local.norm(dim=0, keepdim=True)
            for n in range(3):
                centre = maps[b, v][:, 1]
                h[b, v, n] = torch.tensor([slow_pool(c, boxes[b, v, n].double()) for c in centre])
    for b in range(4):
        for v in range(2):
            context = maps[b, 1 - v][:, 1:2]
            z[b, v] = method.region_head(h[b, v][None], context[None], torch.zeros(1, 3, 2))[0]
    there = torch.ones(4, 3, dtype=torch.bool)
    local_loss = (
        slow_loss(z[:, 0], h[:, 0], h[:, 1], there, there, 0.2)
        + slow_loss(z[:, 1], h[:, 1], h[:, 0], there, there, 0.2)
    ) / 2
    a, b = (method.head(torch.stack([pooled[i, v] for i in range(4)])) for v in range(2))
    assert found["loss_local"].item() == pytest.approx(local_loss, abs=1e-7)
    assert found["loss_global"].item() == pytest.approx(nt_xent(a, b).item(), rel=1e-9)
    whole = found["loss_global"] + 0.01 * found["loss_local"]
    assert found["loss"].item() == pytest.approx(whole.item(), rel=1e-12)


OPTIONS = [
    {},
    {"context_length": 0},
    {"sampling": "nearest"},
    {"sampling": "random"},
    {"endpoint": "c5", "y": False},
    {"endpoint": "c4p", "y": False},
    {"regions": "voxels", "context_length": 0},
    {"regions": "voxels"},
    {"position": "query_and_memory", "activation": "relu"},
    {"parts": 2},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_trains_every_parameter(options: dict[str, object]) -> None:
    method = small(**options)
    awake(method)
    found = method._step(augmented(method, dtype=torch.float32))
    found["loss"].backward()
    assert torch.isfinite(found["loss"])
    without = {n for n, g in gradients(method).items() if g is None or not g.any()}
    # With one frame of context, every token stands at time 0.
    assert without <= {"region_head.when.0.weight"}


def test_dense_loss_takes_every_voxel_of_the_frame() -> None:
    method = small(regions="voxels", context_length=0).double().eval()
    made = augmented(method)
    where, places = asked(method, made)
    _, _, h, _ = method.encode(made["views"], where, places)
    assert h.shape == (4, 2, 4, 128)  # 2 x 2 voxels
    _, local = method.maps(made["views"][:, 1])
    assert torch.allclose(h[2, 1, 3], local[2, :, 1, 1, 1], atol=1e-12)
    assert places[0, 0].tolist() == [
        [0, 0, 0.5, 0.5],
        [0.5, 0, 1, 0.5],
        [0, 0.5, 0.5, 1],
        [0.5, 0.5, 1, 1],
    ]


def test_c4p_is_the_stage_before_the_last_averaged_two_by_two() -> None:
    method = small(y=False, endpoint="c4p").double().eval()
    clips = augmented(method)["views"][:, 0]
    whole, local = method.maps(clips)
    trunk = method.backbone.features(clips, ("layer3",))["layer3"]  # (B, C, T, 4, 4)
    assert torch.allclose(whole, method.backbone(clips))
    for y in range(2):
        for x in range(2):
            mean = trunk[..., 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean((3, 4))
            expected = mean / mean.norm(dim=1, keepdim=True)
            assert torch.allclose(local[..., y, x], expected, atol=1e-12)


def test_gradients_flow_into_targets_and_context() -> None:
    """No stop-gradient anywhere: the local loss of view a alone moves what view b's map is."""
    method = small().double()
    made = augmented(method)
    where, places = asked(method, made)
    views = made["views"].requires_grad_()
    _, _, h, z = method.encode(views, where, places)
    valid = torch.ones(4, 2, 3, dtype=torch.bool)
    by_context = torch.autograd.grad(z[:, 0].square().sum(), views, retain_graph=True)[0]
    assert by_context[:, 1].abs().max() > 0
    loss, _ = method.local_loss(torch.stack([h[:, 0].detach(), h[:, 1]], 1), z.detach(), valid)
    by_target = torch.autograd.grad(loss, views)[0]
    assert by_target[:, 1].abs().max() > 0


@pytest.mark.parametrize(
    ("shift", "expected"),
    [
        (20.0, (3, 0)),  # apart: the ends that face each other
        (-20.0, (0, 3)),
        (4.0, {(2, 0), (3, 1)}),  # 4 s later is 2 frames of the map: any of the common ones
        (0.0, {(0, 0), (1, 1), (2, 2), (3, 3)}),
    ],
)
def test_nearest_frames(shift: float, expected: object) -> None:
    method = small(sampling="nearest")
    time = torch.arange(8.0).double().expand(200, 2, 8).clone()
    time[:, 1] += shift
    found = {tuple(row) for row in method.slices(time, batch(200)["key"]).tolist()}
    assert found == (expected if isinstance(expected, set) else {expected})


def test_random_frames_are_drawn_from_the_key() -> None:
    method = small(sampling="random")
    keys, time = batch(300)["key"], torch.zeros(300, 2, 8)
    found = method.slices(time, keys)
    assert torch.equal(found[7:9], method.slices(time[7:9], keys[7:9]))
    assert all(60 <= n <= 90 * 2 for n in found.flatten().bincount().tolist())
    assert (found[:, 0] != found[:, 1]).float().mean() > 0.6


def test_boxes_of_the_frame_that_was_chosen() -> None:
    """Map frame t is clip frame 2 t."""
    method = small()
    where = torch.tensor([[0, 3], [2, 1]])
    boxes = torch.arange(8.0)[None, None, :, None, None].expand(2, 2, 8, 3, 4).clone()
    boxes[1, 0, 4, 1] = torch.nan
    places = method.places({"views": torch.zeros(2, 2, 3, 8, 64, 32), "boxes": boxes}, where)
    assert places[0, 1, 0].tolist() == [6 / 32, 6 / 64, 6 / 32, 6 / 64]
    valid = places.isfinite().all(-1)
    assert valid.tolist() == [[[True] * 3] * 2, [[True, False, True], [True] * 3]]
    alike = method.places(
        {"views": torch.zeros(2, 2, 3, 8, 64, 32), "boxes": boxes[:, :, :1]}, where
    )
    assert not alike.any()  # one set of boxes for all frames


def test_a_video_without_boxes_is_left_out() -> None:
    method = small().double()
    made = augmented(method)
    made["boxes"][1] = torch.nan
    found = method._step(made)
    assert found["regions"].item() == pytest.approx(0.75)
    found["loss"].backward()
    assert all(torch.isfinite(g).all() for g in gradients(method).values())


def test_training_lowers_both_losses() -> None:
    method = small(local_weight=1.0)
    made = augmented(method, size=8, dtype=torch.float32)
    optimizer = torch.optim.Adam(method.parameters(), lr=3e-3)
    history = []
    for _ in range(40):
        found = method._step(made)
        optimizer.zero_grad()
        found["loss"].backward()
        optimizer.step()
        history.append((found["loss_global"].item(), found["loss_local"].item()))
    assert history[-1][0] < 0.5 * history[0][0]
    assert history[-1][1] < 0.8 * history[0][1]
    # The context matters: with that of another video the loss is higher.
    method.eval()
    where, places = asked(method, made)
    valid = torch.ones(8, 2, 3, dtype=torch.bool)
    with torch.no_grad():
        _, local = method.maps(made["views"].flatten(0, 1))
        _, _, h, z = method.encode(made["views"], where, places)
        foreign = method.predict(h.flatten(0, 1), local.roll(2, 0), places.flatten(0, 1))
        own, _ = method.local_loss(h, z, valid)
        other, _ = method.local_loss(h, foreign.view_as(z), valid)
    assert other > own + 0.05


def test_exported_network_is_that_of_one_branch() -> None:
    both = YResNet(**SMALL)
    clip = torch.randn(1, 3, 4, 32, 32)
    whole, local = both.eval().branches(clip)
    for endpoint, expected in (("global", whole), ("local", local)):
        one = YResNet(endpoint=endpoint, **SMALL)
        report = one.load_state_dict(both.state_dict(), strict=False)
        assert report.missing_keys == []
        left = {key.split(".")[0] + key.split(".")[1] for key in report.unexpected_keys}
        assert all(name.startswith("local" if endpoint == "global" else "blocks4") for name in left)
        assert torch.equal(one.eval()(clip), expected)
        assert F.mse_loss(whole, local) > 0
    assert both.downstream()["init_args"]["endpoint"] == "global"
    assert both.config["init_args"]["endpoint"] == "both"
    with pytest.raises(ValueError, match="local branch only"):
        one.branches(clip)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"y": False}, "c5g\\+c5r needs a YResNet"),
        ({"endpoint": "c5"}, "c5g\\+c5r needs a YResNet"),
        ({"context_length": 2}, "an odd number"),
        ({"sampling": "middle"}, "sampling must be one of centre"),
        ({"endpoint": "c3"}, "endpoint must be one of"),
        ({"regions": "tubes"}, "regions must be one of"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_context_longer_than_the_map_is_named() -> None:
    method = small(context_length=5)
    with pytest.raises(ValueError, match="at most the 2 frames of the feature map"):
        method._step(augmented(method, dtype=torch.float32))
