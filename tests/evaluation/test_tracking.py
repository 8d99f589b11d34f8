"""SiamFC on a net of one layer: what it follows, how it trains, what it leaves behind."""

import functools
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lightning_vssl.backbones.base import Backbone
from lightning_vssl.callbacks.tracked_boxes import TrackedBoxes, draw_boxes
from lightning_vssl.data.decode import probe
from lightning_vssl.data.sequences import FrameSequence, TrackedSequence
from lightning_vssl.data.track_files import TrackFiles
from lightning_vssl.datamodules.sequences import SequenceDataModule
from lightning_vssl.datamodules.tracking_pairs import TrackingPairs
from lightning_vssl.evaluation.tracking import SiamFC
from lightning_vssl.metrics.tracking import box_overlaps
from lightning_vssl.tracking.siamese import SiameseSearch
from tests.evaluation.small import trainer

SIDE = 40
GREY = 128


class Patches(Backbone):
    """Every 8 x 8 patch as it is, in contrast to middle grey: raw pixels as a backbone."""

    def __init__(self, dims=2):
        super().__init__(
            channels={"first": 3, "last": 192},
            strides={"first": (1, 1), "last": (1, 8)},
            init_args={"dims": dims},
            pixels=((0.502, 0.502, 0.502), (0.25, 0.25, 0.25)),
            dims=dims,
        )
        self.gain = nn.Parameter(torch.ones(3))

    def stage(self, name, x):
        if name == "first":
            return x * self.gain.view(3, *[1] * (x.ndim - 2))
        flat = x.movedim(1, -3)  # (B, [T,] 3, H, W)
        *lead, _, height, width = flat.shape
        height, width = height // 8 * 8, width // 8 * 8
        cut = flat[..., :height, :width].reshape(*lead, 3, height // 8, 8, width // 8, 8)
        cut = cut.movedim((-4, -2), (-2, -1)).flatten(-5, -3)  # (B, [T,] 192, H', W')
        return cut.movedim(1, 2) if self.dims == 3 else cut


def texture(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (SIDE // 8, SIDE // 8, 3)).astype(np.uint8)


def slide(folder, path, name="slide", size=(160, 240), grow=1.0):
    """A textured patch over a grey ground; its centre at (x, y) of ``path`` in each frame."""
    (folder / name).mkdir(parents=True)
    pattern, files, boxes = texture(), [], []
    for t, (x, y) in enumerate(path):
        side = round(SIDE * grow**t / 2) * 2
        patch = Image.fromarray(pattern).resize((side, side), Image.Resampling.NEAREST)
        frame = Image.new("RGB", size[::-1], (GREY,) * 3)
        frame.paste(patch, (x - side // 2, y - side // 2))
        files.append(folder / name / f"{t:04d}.png")
        frame.save(files[-1])
        boxes.append([x - side / 2, y - side / 2, x + side / 2, y + side / 2])
    truth = torch.tensor(boxes, dtype=torch.float64)
    return TrackedSequence(FrameSequence(name, tuple(files)), truth)


def siamfc(backbone=None, **options):
    sgd = functools.partial(torch.optim.SGD, lr=0.01)
    settings = {"optimizer": sgd, "backbone": backbone or Patches(), **options}
    return SiamFC(**settings).eval()


def centres(boxes):
    return (boxes[:, :2] + boxes[:, 2:]) / 2


LINE = [(60 + 6 * t, 70 + 2 * t) for t in range(16)]


class TestFollows:
    @pytest.mark.parametrize("dims", [2, 3])
    def test_a_patch_within_one_stride(self, tmp_path, dims):
        sequence = slide(tmp_path, LINE)
        neighbours = 0 if dims == 2 else 1
        found, seconds = siamfc(Patches(dims), neighbours=neighbours).track(sequence)
        assert len(seconds) == len(found) == 16
        assert min(seconds) > 0
        pixel = 2 * SIDE / 127  # of the picture, per pixel of the crop
        error = (centres(found) - centres(sequence.boxes)).abs().max()
        assert error < 8 * pixel
        assert error < 2.5  # in fact
        assert (centres(sequence.boxes)[-1] - centres(sequence.boxes)[0]).norm() > 90

    def test_with_exemplars_of_120_pixels_and_beyond_the_edge(self, tmp_path):
        path = [(30 - 3 * t, 60) for t in range(10)]  # in the end half of it is outside
        sequence = slide(tmp_path, path)
        search = SiameseSearch(exemplar=120, side_limits=(0.2, 5.0))
        found, _ = siamfc(search=search).track(sequence)
        assert (centres(found) - centres(sequence.boxes)).abs().max() < 8 * 2 * SIDE / 120

    def test_a_patch_that_grows(self, tmp_path):
        sequence = slide(tmp_path, [(120, 80)] * 18, grow=1.02)
        found, _ = siamfc().track(sequence)
        sides, true = ((b[:, 2:] - b[:, :2]).mean(1) for b in (found, sequence.boxes))
        assert true[-1] > 1.35 * SIDE
        assert sides[-1] == pytest.approx(float(true[-1]), rel=0.1)
        still, _ = siamfc(search=SiameseSearch(scales=1)).track(sequence)
        assert torch.allclose(still[-1, 2:] - still[-1, :2], torch.tensor([40.0, 40.0]).double())

    def test_first_box_is_as_given_and_the_others_are_not_looked_at(self, tmp_path):
        sequence = slide(tmp_path, LINE[:4])
        blind = torch.full_like(sequence.boxes, torch.nan)
        blind[0] = sequence.boxes[0]
        found, _ = siamfc().track(TrackedSequence(sequence.frames, blind))
        assert torch.equal(found[0], blind[0])
        assert torch.equal(found, siamfc().track(sequence)[0])

    def test_one_frame(self, tmp_path):
        found, seconds = siamfc().track(slide(tmp_path, LINE[:1]))
        assert found.shape == (1, 4)
        assert len(seconds) == 1

    @pytest.mark.parametrize("box", [[5.0, 5.0, 5.0, 9.0], [float("nan")] * 4])
    def test_bad_first_box_names_the_sequence(self, tmp_path, box):
        sequence = slide(tmp_path, LINE[:2], name="Broken")
        sequence.boxes[0] = torch.tensor(box)
        with pytest.raises(ValueError, match="Broken: the first box must have an area"):
            siamfc().track(sequence)


class TestNeighbours:
    def test_only_the_centre_is_kept(self):
        """A net that tells time: the slice kept is that of the middle frame, strided or not."""

        class Times(Patches):
            def stage(self, name, x):
                x = super().stage(name, x)
                return x[:, :, :: self.step] if name == "last" else x

        for step in (1, 2):
            net = Times(3)
            net.step = step
            net.stage_strides["last"] = (step, 8)
            clip = torch.arange(5.0).view(1, 1, 5, 1, 1).expand(2, 3, 5, 16, 16)
            assert siamfc(net, neighbours=2).embed(clip).unique().item() == 2

    def test_image_networks_have_none(self):
        with pytest.raises(ValueError, match="0 for an image network; got 2 for Patches"):
            siamfc(neighbours=2)


class TestOptions:
    @pytest.mark.parametrize(
        ("wrong", "words"),
        [({"loss": "hinge"}, "loss"), ({"stage": "layer9"}, "first, last; got 'layer9'")],
    )
    def test_are_checked(self, wrong, words):
        with pytest.raises(ValueError, match=words):
            siamfc(**wrong)

    def test_what_lies_behind_the_stage_is_not_trained(self):
        class Tail(Patches):
            def __init__(self):
                super().__init__()
                self.unused = nn.Conv2d(3, 3, 1)

        model = siamfc(Tail(), stage="first")
        trained = {name for name, p in model.backbone.named_parameters() if p.requires_grad}
        assert trained == {"gain"}
        frozen = siamfc(Tail(), frozen=True, channels=4)
        assert not any(p.requires_grad for p in frozen.backbone.parameters())

    def test_statistics_stay_unless_asked_for(self):
        class Normed(Patches):
            def __init__(self):
                super().__init__()
                self.norm = nn.BatchNorm2d(3)

        assert not siamfc(Normed()).train().backbone.norm.training
        assert siamfc(Normed(), statistics=True).train().backbone.norm.training
        assert not siamfc(Normed(), statistics=True, frozen=True).train().backbone.norm.training

    def test_nothing_to_train_is_said(self, tmp_path):
        model = siamfc(frozen=True)
        with pytest.raises(ValueError, match="nothing to train"):
            trainer(tmp_path, max_epochs=1).fit(model, TrackingPairs(Slides(tmp_path / "data")))


class Slides(SequenceDataModule):
    """Three patches that slide, for training and tests alike."""

    def names(self, split):
        return ["right", "left", "down"]

    def read(self, split, name):
        folder = self.root / split
        step = {"right": (5, 0), "left": (-5, 1), "down": (0, 4)}[name]
        path = [(120 + step[0] * t, 60 + step[1] * t) for t in range(8)]
        if (folder / name).exists():
            for file in (folder / name).iterdir():
                file.unlink()
            (folder / name).rmdir()
        return slide(folder, path, name=name)

    def track_files(self, folder):
        return TrackFiles(folder, "otb")


class TestRun:
    def pairs(self, folder):
        return TrackingPairs(Slides(folder), samples=8, batch_size=4)

    def test_trains_tracks_and_tells(self, tmp_path):
        model = siamfc(frozen=True, channels=4, scale=0.01, paper={"success": 55.2})
        model.optimizer = functools.partial(torch.optim.Adam, lr=0.01)
        before = model.head.exemplar.weight.clone()
        films = TrackedBoxes(sequences=2, columns=3)
        run = trainer(tmp_path, max_epochs=2, callbacks=[films], log_every_n_steps=1)
        run.fit(model, self.pairs(tmp_path / "data"))
        assert not torch.equal(before, model.head.exemplar.weight)
        assert run.global_step == 4
        run.test(model, self.pairs(tmp_path / "data"), verbose=False)
        told = json.loads((tmp_path / "result.json").read_text())
        assert told["results"].keys() >= {"success", "precision", "normalised_precision"}
        assert told["sequences"] == 3
        assert told["frames"] == 24
        assert told["frames_per_second"] > 0
        assert told["epochs_trained"] == 2
        assert told["training"]["optimizer"]["class"] == "Adam"
        assert told["paper"] == {"success": 55.2}
        assert told["protocol"]["data"]["train"]["class"] == "Slides"
        assert told["protocol"]["search"]["exemplar"] == 127
        found = TrackFiles(tmp_path / "SiamFC", "otb").read("left")
        assert found.shape == (8, 4)
        assert (tmp_path / "sequences.csv").read_text().count("\n") >= 4
        assert (tmp_path / "curves.png").is_file()
        made = sorted(file.name for file in (tmp_path / "tracked_boxes").iterdir())
        assert made == ["left.mp4", "left.png", "right.mp4", "right.png"]
        assert probe(tmp_path / "tracked_boxes" / "right.mp4").frames == 8

    def test_untrained_patches_are_followed_to_nearly_all_there_is(self, tmp_path):
        run = trainer(tmp_path)
        run.test(siamfc(), self.pairs(tmp_path / "data"), verbose=False)
        told = json.loads((tmp_path / "result.json").read_text())
        assert told["results"]["success"] > 80  # of 95.2
        assert told["results"]["precision"] == 100

    def test_withheld_boxes_leave_files_and_no_number(self, tmp_path):
        class Withheld(Slides):
            def read(self, split, name):
                sequence = super().read(split, name)
                sequence.boxes[1:] = torch.nan
                return sequence

        run = trainer(tmp_path)
        run.test(siamfc(), Withheld(tmp_path / "data"), verbose=False)
        assert not (tmp_path / "result.json").exists()
        assert len(list((tmp_path / "SiamFC").glob("*.txt"))) == 3

    def test_loss_falls_on_pairs(self, tmp_path):
        """Two convolutions learn to answer where the patch is and nowhere else."""
        model = siamfc(frozen=True, channels=8, scale=0.01).train()
        data = self.pairs(tmp_path / "data")
        data.setup("fit")
        batch = model.view(next(iter(data.train_dataloader())))
        model.log = model.note_input = lambda *_, **__: None
        adam = torch.optim.Adam(model.head.parameters(), lr=0.01)
        losses = []
        for _ in range(30):
            adam.zero_grad()
            loss = model.training_step(batch, 0)
            loss.backward()
            adam.step()
            losses.append(loss.item())
        assert losses[-1] < 0.5 * losses[0]


def test_boxes_are_drawn_where_they_are(tmp_path):
    sequence = slide(tmp_path, [(60, 70), (80, 70)])
    tracked = sequence.boxes + 8
    sequence.boxes[1] = torch.nan
    first, second = draw_boxes(sequence.frames.frames(), sequence.boxes, tracked)
    green, pink = (60, 220, 90), (255, 60, 160)
    assert tuple(first[70, 40]) == green
    assert tuple(first[80, 48]) == pink
    assert tuple(second[80, 68]) == pink
    assert not (second == green).all(-1).any()
    assert box_overlaps(sequence.boxes[:1], tracked[:1]).item() < 1


def test_film_of_an_evaluation_that_tracks_nothing(tmp_path):
    with pytest.raises(TypeError, match="returns no `predicted` boxes"):
        TrackedBoxes().on_test_batch_end(trainer(tmp_path), None, None, {}, 0)
