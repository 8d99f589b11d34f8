"""Pictures of Grad-CAM: the heat against loops and closed forms, the pictures pixel by pixel."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_vssl.backbones.base import Backbone
from lightning_vssl.callbacks.grad_cam import (
    ClassCAMs,
    GradCAMs,
    ObjectTracks,
    TwoObjects,
    backbone_cams,
    class_cams,
    draw_cams,
    draw_object_tracks,
    draw_two_objects,
    match_cams,
    track_cams,
)
from lightning_vssl.evaluation.recognition import FineTune, LinearProbe
from lightning_vssl.nn.grad_cam import key_foreground
from tests.callbacks.parts import TinyBackbone
from tests.evaluation.small import OneLayer, Tensors, trainer, videos
from tests.methods.momentum import augmented, small

SGD = partial(torch.optim.SGD, lr=0.05)


class Colours(Backbone):
    """How much red, green and blue there is in blocks of 4 x 4 pixels."""

    def __init__(self, dims: int = 3) -> None:
        super().__init__(
            channels={"only": 3},
            strides={"only": (1, 4)},
            init_args={"dims": dims},
            pixels=((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
            dims=dims,
        )
        self.scale = nn.Parameter(torch.ones(()))

    def stage(self, name: str, x: Tensor) -> Tensor:
        window = (1, 4, 4) if self.dims == 3 else 4
        pool = F.avg_pool3d if self.dims == 3 else F.avg_pool2d
        return pool(self.scale * x, window).relu()


def fitting(folder: Path, validates: bool = True) -> SimpleNamespace:
    return SimpleNamespace(
        is_global_zero=True,
        default_root_dir=str(folder),
        num_training_batches=3,
        global_step=3,
        max_steps=10,
        enable_validation=validates,
        sanity_checking=False,
        current_epoch=0,
    )


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened).astype(int)


@pytest.mark.parametrize("dims", [2, 3])
def test_cams_of_a_backbone_equal_the_closed_form(dims: int) -> None:
    torch.manual_seed(0)
    net = TinyBackbone(dims=dims).eval()
    clips = torch.randn(2, 3, 4, 16, 16)
    cams, guided = backbone_cams(net, clips)
    assert cams.shape == (2, 4, 16, 16)
    assert guided.shape == clips.shape
    for b in range(2):
        pixels = clips[b : b + 1] if dims == 3 else clips[b].transpose(0, 1)
        maps = net(pixels).detach()
        pooled = maps.flatten(2).mean(2)  # the derivative of half its squared length
        heat = torch.einsum("bc,bc...->b...", pooled, maps) / maps[0, 0].numel()
        mode = "trilinear" if dims == 3 else "bilinear"
        large = F.interpolate(heat[:, None], pixels.shape[2:], mode=mode)[:, 0]
        expected = large[0] if dims == 3 else large
        assert torch.allclose(cams[b], expected, atol=1e-6)
        assert torch.equal(guided[b] == 0, (guided[b] == 0) | (cams[b] == 0))
    dark = guided.abs().sum(1) * (cams == 0)
    assert not dark.any()


def test_foreground_has_the_mean_colour_elsewhere() -> None:
    views = torch.randn(2, 3, 4, 8, 8)
    mask = torch.zeros(2, 4, 4, 4, dtype=torch.uint8)
    mask[0, :, 1, 2] = 2
    mask[0, :, 0, 0] = 255  # void is no object
    found = key_foreground(views, mask)
    assert torch.equal(found[0, :, :, 2:4, 4:6], views[0, :, :, 2:4, 4:6])
    assert found.count_nonzero() == 3 * 4 * 4
    once = key_foreground(views, mask[:, :1])
    assert torch.equal(once, found)


def test_heat_outline_and_gradients_are_drawn_where_they_are() -> None:
    frames = torch.full((1, 3, 2, 16, 16), 0.5)
    cams, guided = torch.zeros(1, 2, 16, 16), torch.zeros(1, 3, 2, 16, 16)
    cams[0, :, :8, :8] = 0.2  # its largest value is the brightest, whatever it is
    guided[0, 0, 1, 0, 15] = 7.0
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    mask[0, 0, 1:3, 1:3] = 1
    asked = torch.zeros(1, 2, 2, 2)
    asked[0, :, 1, 1] = 3
    sheet = np.asarray(
        draw_cams(frames, cams, guided, head="x", asked=asked, masks=mask, count=2)
    ).astype(int)
    assert sheet.shape == (34 + 20 + 4, 8 * 20 + 4, 3)
    cells = [sheet[34:50, 4 + 20 * i : 20 + 20 * i] for i in range(8)]
    assert (cells[0][6:10, 6:10] == 128).all()
    green = [60, 220, 90]
    for cell in (cells[0], cells[1], cells[2], cells[6]):
        assert (cell[3, 4:12] == green).all()
        assert (cell[4:12, 12] == green).all()
    assert cells[2][0, 0].sum() > 2 * cells[2][15, 15].sum()
    assert (cells[4] == 128).all()  # no gradient in this frame: grey, and no outline
    assert cells[5][0, 15, 0] == 255
    assert cells[7][15, 15].sum() > 2 * cells[7][0, 0].sum()


def test_grad_cams_draws_the_last_training_batch_of_any_method(tmp_path: Path) -> None:
    module = nn.Module()
    module.backbone = Colours()
    module.dropped = nn.Dropout()
    module.dropped.eval()
    views = torch.zeros(3, 1, 3, 2, 16, 16)
    views[:, :, 0, :, 12:, 12:] = 1.0
    callback = GradCAMs(clips=1, frames=1)
    outputs = {"views": views, "embedding": torch.zeros(3, 3)}
    callback.on_validation_batch_end(fitting(tmp_path), module, {}, None, 0)  # not asked
    callback.on_train_batch_end(fitting(tmp_path), module, outputs, None, 2)
    callback.on_fit_end(fitting(tmp_path), module)
    sheet = picture(tmp_path / "grad_cam.png")
    assert sheet.shape[1] == 3 * (16 * 7 + 4) + 4
    heat = sheet[34 : 34 + 112, 120 : 120 + 112].sum(-1)
    assert heat[105, 105] > 3 * heat[5, 5]
    assert module.training
    assert not module.dropped.training
    with pytest.raises(TypeError, match="embedding"):
        callback.on_train_batch_end(fitting(tmp_path), module, {"views": views}, None, 2)


@pytest.mark.parametrize("dims", [2, 3])
def test_each_key_finds_its_own_side(dims: int) -> None:
    net = Colours(dims)
    query = torch.zeros(2, 3, 2, 8, 16)
    query[:, 0, :, :, :8] = 1  # red on the left, green on the right
    query[:, 1, :, :, 8:] = 1
    keys = torch.zeros(4, 3, 2, 8, 8)
    keys[0::2, 0], keys[1::2, 1] = 1, 1
    with torch.no_grad():
        heat = match_cams(nn.Module(), net, query, keys)
        other = match_cams(nn.Module(), net, query, keys.flip(0))
    assert heat.shape == (2, 2, 8, 16)
    left = heat[..., :8].sum((2, 3)) / heat.sum((2, 3))
    assert (left[:, 0] > 0.9).all()
    assert (left[:, 1] < 0.1).all()
    assert torch.allclose(other, heat.flip(1))


@pytest.mark.parametrize("alone", [False, True])
def test_keys_go_through_the_key_network_and_queries_through_the_head(alone: bool) -> None:
    method = small("PreViTS of clips").eval()
    for parameter in method.target.parameters():
        parameter.mul_(1.5)
    query, keys = torch.randn(1, 3, 4, 32, 64), torch.randn(2, 3, 4, 32, 32)
    with torch.no_grad():
        heat = match_cams(method, method.backbone, query, keys, alone=alone)
    assert not any(part.training for part in method.modules())
    method.target.train(alone)
    seen = method.target["backbone"](keys).mean((2, 3, 4)).detach()
    maps = method.backbone(query)
    code = F.normalize(method.projector(maps.mean((2, 3, 4))), dim=1)[0]
    for place in (0, 1):
        key = F.normalize(method.target["projector"](seen[place : place + 1]), dim=1)[0]
        (gradient,) = torch.autograd.grad(code @ key, maps, retain_graph=True)
        alpha = gradient[0].flatten(1).mean(1)
        cam = torch.einsum("c,cthw->thw", alpha, maps[0].detach()).relu()
        large = F.interpolate(cam[None, None], (4, 32, 64), mode="trilinear")[0, 0, 2]
        assert torch.allclose(heat[0, place], large, atol=1e-7)
        assert heat[0, place].any()


def test_two_objects_asks_by_the_objects_alone_where_masks_are_known(tmp_path: Path) -> None:
    module = nn.Module()
    module.backbone = Colours()
    views = torch.zeros(4, 2, 3, 2, 16, 16)
    mask = torch.zeros(4, 2, 2, 8, 8, dtype=torch.uint8)
    views[0] = 0.5  # no object in the first video: it comes last
    for video, colour in ((1, 0), (2, 1), (3, 0)):
        views[video, 0, colour] = 1.0
        views[video, 1, 1 - colour] = 1.0  # the key's background has the other's colour
        views[video, 1, :, :, 4:8, 4:8] = 0.0
        views[video, 1, colour, :, 4:8, 4:8] = 1.0
        mask[video, 0], mask[video, 1, :, 2:4, 2:4] = 1, 1
    batch = {"views": views, "mask": mask}
    outputs = {"views": views, "embedding": torch.zeros(4, 3)}
    found = []
    for given in (batch, {**batch, "views": views.clone()}):  # the latter are not the step's views
        callback = TwoObjects(pairs=1)
        callback.on_train_batch_end(fitting(tmp_path), module, outputs, given, 2)
        callback.on_fit_end(fitting(tmp_path), module)
        sheet = picture(tmp_path / "two_objects.png")
        assert sheet.shape[1] == 3 * (2 * 112 + 4) + 2 * (112 + 4) + 4
        heat = sheet[34 : 34 + 112, 4 + 228 + 116 : 4 + 228 + 116 + 224].sum(-1)
        found.append((heat[60, 20] > 2 * heat[60, 200], sheet[40, 240].tolist()))
    # Red alone is found in red; where masks are those of other views, keys stay whole.
    assert found == [(True, [0, 0, 0]), (True, [128, 128, 128])]
    one = {"views": views[:, :1], "embedding": torch.zeros(4, 3)}
    with pytest.raises(TypeError, match="two views"):
        TwoObjects().on_train_batch_end(fitting(tmp_path), module, one, None, 2)


def test_the_share_of_heat_is_that_of_the_keys_own_side() -> None:
    query, keys = torch.zeros(1, 3, 112, 224), torch.zeros(1, 2, 3, 112, 112)
    heat = torch.zeros(1, 2, 112, 224)
    heat[0, 0, 56, 10], heat[0, 0, 56, 200] = 3.0, 1.0
    heat[0, 1, 56, 10], heat[0, 1, 56, 200] = 3.0, 1.0
    sheet = draw_two_objects(query, keys, heat, alone=True)
    quarters = []
    for share in (0.75, 0.25):  # the same numbers, drawn by themselves
        other = torch.zeros(1, 2, 112, 224)
        other[0, 0, 56, 10], other[0, 0, 56, 200] = 4 * share, 4 - 4 * share
        quarters.append(np.asarray(draw_two_objects(query, keys, other, alone=True)))
    found, corner = np.asarray(sheet), np.s_[34:50, 348:460]
    right = np.s_[34:50, 348 + 228 + 116 : 460 + 228 + 116]
    assert np.array_equal(found[corner], quarters[0][corner])
    assert np.array_equal(found[right], quarters[1][corner])
    assert not np.array_equal(found[corner], found[right])


@pytest.mark.parametrize("kind", ["PreViTS of clips", "PreViTS of frames", "MoCo of clips"])
def test_methods_are_drawn(tmp_path: Path, kind: str) -> None:
    method = small(kind)
    made = augmented(method, dtype=torch.float32)
    outputs = method._step(made)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    for callback in (GradCAMs(), TwoObjects()):
        callback.on_train_batch_end(fitting(tmp_path), method, outputs, made, 2)
        with torch.inference_mode():  # pictures of an epoch are made within its validation
            callback.every_n_epochs = 1
            callback.on_validation_epoch_end(fitting(tmp_path), method)
        callback.on_fit_end(fitting(tmp_path), method)
        first = picture(tmp_path / f"{callback.name}_epoch0.png")
        assert np.array_equal(first, picture(tmp_path / f"{callback.name}.png"))
        assert len(np.unique(first.reshape(-1, 3), axis=0)) > 1000
    kinds = 4 if kind.startswith("PreViTS") else 3
    shown = made["views"].shape[3] if made["views"].shape[3] < 2 else 2
    assert picture(tmp_path / "grad_cam.png").shape[1] == kinds * shown * (32 * 4 + 4) + 4
    assert method.training
    assert all(torch.equal(before[name], value) for name, value in method.state_dict().items())
    assert all(parameter.grad is None for parameter in method.parameters())


@pytest.mark.parametrize("kind", ["PreViTS of clips", "PreViTS of frames"])
def test_later_frames_are_asked_as_a_query_is_by_its_key(kind: str) -> None:
    method = small(kind).eval()
    for parameter in method.target.parameters():
        parameter.mul_(1.5)
    frames = 4 if method.backbone.dims == 3 else 1
    queries, keys = torch.randn(2, 3, 3, frames, 32, 32), torch.randn(2, 3, frames, 32, 32)
    with torch.no_grad():
        heat = track_cams(method, method.backbone, queries, keys)
        assert heat.shape == (2, 3, 32, 32)
        assert heat.any()
        for n in range(3):  # keys of a pair are asked for in one picture; here each in its own
            both = match_cams(method, method.backbone, queries[:1, n], keys, alone=True)
            other = match_cams(method, method.backbone, queries[1:, n], keys, alone=True)
            assert torch.allclose(heat[0, n], both[0, 0], atol=1e-7)
            assert torch.allclose(heat[1, n], other[0, 1], atol=1e-7)


def walk(folder: Path, masked: tuple[int, ...], label: int = 2, frames: int = 9) -> None:
    """A video of a red square that walks to the right over green, its mask a palette's."""
    for kind in ("frames", "masks"):
        (folder / kind / "walk").mkdir(parents=True)
    for t in range(frames):
        rows = np.zeros((16, 64, 3), np.uint8)
        rows[:, :, 1] = 255
        rows[4:12, 6 * t : 6 * t + 8] = (255, 0, 0)
        Image.fromarray(rows).save(folder / "frames" / "walk" / f"{t:05d}.png")
        if t in masked:
            mask = np.zeros((16, 64), np.uint8)
            mask[4:12, 6 * t : 6 * t + 8] = label
            mask[:2] = 1  # another object
            one = Image.fromarray(mask, "P")
            one.putpalette([0, 0, 0, 90, 0, 0, 0, 90, 0])
            one.save(folder / "masks" / "walk" / f"{t:05d}.png")


@pytest.mark.parametrize("dims", [2, 3])
def test_an_object_is_found_where_it_went(tmp_path: Path, dims: int) -> None:
    walk(tmp_path, masked=(0, 4))
    module = nn.Module()
    module.backbone = Colours(dims)
    callback = ObjectTracks(
        tmp_path / "frames", tmp_path / "masks", label=2, count=3, size=(16, 64), clip=3
    )
    callback.setup(fitting(tmp_path), module, "fit")
    callback.on_train_batch_end(fitting(tmp_path), module, {}, None, 2)
    callback.on_fit_end(fitting(tmp_path), module)
    sheet = picture(tmp_path / "object_tracks.png")
    zoom = 7
    assert sheet.shape == (34 + 16 * zoom + 4 + 4, 4 * (64 * zoom + 4) + 4, 3)
    cells = [sheet[34:146, 4 + 452 * i : 452 + 452 * i] for i in range(4)]
    assert (cells[0][35:77, 7:49] == [255, 0, 0]).all()  # the object alone, on the mean colour
    assert not cells[0][:, 70:].any()
    for cell, t in zip(cells[1:], (1, 4, 8), strict=True):  # the second frame to the last
        bright = cell[56].sum(-1)
        assert abs(bright.argmax() / zoom - (6 * t + 4)) < 5
        assert bright.max() > 2 * np.median(bright)
    outlined = [(cell == [60, 220, 90]).all(-1).any() for cell in cells]
    assert outlined == [False, False, True, False]  # where a mask is known


def test_frames_are_numbered_and_heat_is_brought_to_one_in_each() -> None:
    frames, heat = torch.full((1, 2, 3, 112, 112), 0.5), torch.zeros(1, 2, 112, 112)
    heat[0, 0, 60:, 60:], heat[0, 1, 60:, :50] = 0.01, 5.0
    masks = torch.zeros(1, 2, 56, 56, dtype=torch.uint8)
    masks[0, 1, 20:30, 20:30] = 1
    numbers = torch.tensor([[3, 12]])
    sheets = [
        np.asarray(
            draw_object_tracks(torch.zeros(1, 3, 112, 112), frames, heat, masks=masks, numbers=n)
        ).astype(int)
        for n in (numbers, numbers.flip(1), None)
    ]
    first, second = np.s_[34:146, 120:232], np.s_[34:146, 236:348]
    assert np.array_equal(sheets[2][first][100, 100], sheets[2][second][100, 20])
    assert sheets[2][first][100, 100].sum() > 3 * sheets[2][first][100, 20].sum()
    assert (sheets[2][second][38, 40:60] == [60, 220, 90]).all()
    assert not np.array_equal(sheets[0][first], sheets[1][first])
    assert not np.array_equal(sheets[0][first], sheets[2][first])


def test_videos_that_cannot_be_followed_are_refused_before_training(tmp_path: Path) -> None:
    walk(tmp_path, masked=(4,))
    module = nn.Module()
    module.backbone = Colours(2)

    def begin(stage: str = "fit", **options: object) -> None:
        callback = ObjectTracks(tmp_path / "frames", tmp_path / "masks", size=(16, 64), **options)
        callback.setup(fitting(tmp_path), module, stage)

    begin("test")  # nothing is read
    with pytest.raises(FileNotFoundError, match=r"walk/00000\.png"):
        begin()
    mask = tmp_path / "masks" / "walk" / "00000.png"
    Image.fromarray(np.zeros((16, 64), np.uint8)).save(mask)
    with pytest.raises(ValueError, match="walk: the first mask shows no object"):
        begin()
    with pytest.raises(ValueError, match="nobody: 0 frames"):
        begin(videos=["nobody"])
    last = tmp_path / "frames" / "walk" / "00008.png"
    last.write_bytes(last.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"00008\.png: not a whole picture"):
        begin()
    with pytest.raises(FileNotFoundError, match="no folder of frames"):
        ObjectTracks(tmp_path / "none", tmp_path).setup(fitting(tmp_path), module, "fit")
    for wrong in ({"count": 0}, {"clip": 0}, {"label": -1}, {"size": (0, 9)}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
            ObjectTracks(tmp_path, tmp_path, **wrong)


@pytest.mark.parametrize("dims", [2, 3])
def test_class_cams_equal_the_closed_form(dims: int) -> None:
    # Behind the average stands one linear layer: a channel weighs what the class's row says.
    torch.manual_seed(0)
    net = OneLayer(dims=dims)
    fine = FineTune(optimizer=SGD, backbone=net, dropout=0.9)
    fine.build(6)
    nn.init.normal_(fine.heads[0].weight)
    fine.eval()
    clip = torch.rand(1, 3, 2, 8, 8)
    with torch.inference_mode():
        cam, guided, number = class_cams(fine, clip * 1)
        third, _, asked = class_cams(fine, clip * 1, wanted=3)
    maps = net(clip) if dims == 3 else net(clip[0].transpose(0, 1)).transpose(0, 1)[None]
    logits = fine.heads[0](maps.mean((2, 3, 4)))[0]
    assert number == int(logits.argmax())
    assert asked == 3
    for found, row in ((cam, number), (third, 3)):
        heat = torch.einsum("c,cthw->thw", fine.heads[0].weight[row], maps[0]).relu() / 32
        large = F.interpolate(heat[None, None], (2, 8, 8), mode="trilinear")[0]
        assert torch.allclose(found, large.detach(), atol=1e-6)
    assert guided.shape == clip.shape
    assert cam.any()


def test_class_cams_of_a_run_and_its_test(tmp_path: Path) -> None:
    data = Tensors(train=videos(2), val=videos(1), test=videos(1))
    fine = FineTune(optimizer=SGD, backbone=OneLayer(), head_epochs=0)
    runs: Callable[..., Trainer] = partial(trainer, max_epochs=1)
    runs(tmp_path / "fit", callbacks=[ClassCAMs(clips=2)]).fit(fine, datamodule=data)
    runs(tmp_path / "test", callbacks=[ClassCAMs(clips=3, asked="label")]).test(
        fine, datamodule=data, verbose=False
    )
    heights = [len(picture(tmp_path / run / "class_cam.png")) for run in ("fit", "test")]
    assert heights == [34 + rows * (4 * 28 + 4) + 4 for rows in (2, 3)]


def test_class_cams_refuses_what_has_no_gradients(tmp_path: Path) -> None:
    probe = LinearProbe(optimizer=SGD, backbone=OneLayer())
    probe.build(6)
    callback = ClassCAMs()
    batch = {"views": torch.rand(2, 1, 3, 2, 8, 8), "label": torch.zeros(2, dtype=torch.int64)}
    callback.on_test_batch_end(fitting(tmp_path), probe, None, batch, 0)
    with pytest.raises(TypeError, match="fine-tuned"):
        callback.on_test_end(fitting(tmp_path), probe)
    with pytest.raises(TypeError, match="labels"):
        callback.on_test_batch_end(fitting(tmp_path), probe, None, {"views": batch["views"]}, 0)
    with pytest.raises(ValueError, match="asked"):
        ClassCAMs(asked="first")
