"""Something-Something V1 and V2: their lists, folders of frames, and no mirrors."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lightning_vssl.augment.sides import check_sides
from lightning_vssl.augment.views import FineTuneViews, VideoViews
from lightning_vssl.callbacks.online import OnlineProbe
from lightning_vssl.data.clips import RandomClip, UniformClips
from lightning_vssl.data.decode import UnreadableVideo
from lightning_vssl.data.synthetic import make_demo
from lightning_vssl.data.synthetic_layouts import LAYOUTS
from lightning_vssl.data.synthetic_scenes import MOTIONS
from lightning_vssl.data.windows import SizeCrop, WholeFrame
from lightning_vssl.datamodules.something_something import (
    SomethingSomethingV1,
    SomethingSomethingV2,
)
from lightning_vssl.evaluation.recognition import FineTune
from lightning_vssl.methods.supervised import Supervised
from tests.evaluation.small import PLAIN, OneLayer, trainer

# A word of each motion's class.
SAYS = {
    "MoveLeft": "left",
    "MoveRight": "right",
    "MoveUp": "up",
    "MoveDown": "down",
    "TurnClockwise": "clockwise",
    "Grow": "closer",
    "Oscillate": "Shaking",
    "Rest": "nothing happens",
}
V1, V2 = "something-something-v1", "something-something-v2"


def write(file: Path, content: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    file.write_bytes(text.encode())


def rows_of(data, split):
    return [(entry.path, entry.label, entry.fps) for entry in data.entries(split)[0]]


@pytest.fixture
def first(tmp_path):
    """Lists of version 1, with the ends of lines, commas and apostrophes of the official ones."""
    classes = (
        "Holding something",
        "Turning something upside down",
        "Putting something that can't roll onto a slanted surface, so it slides down",
    )
    write(tmp_path / f"{V1}-labels.csv", "\n".join(classes))
    write(tmp_path / f"{V1}-train.csv", f"100218;{classes[2]}\r\n7;{classes[0]}\r\n\r\n")
    write(tmp_path / f"{V1}-validation.csv", f"24413;{classes[1]}\n")
    write(tmp_path / f"{V1}-test.csv", "60846\n")
    (tmp_path / "20bn-something-something-v1").mkdir()
    return tmp_path


@pytest.fixture
def second(tmp_path):
    """Lists of version 2; labels are not in the order of the names."""
    write(
        tmp_path / f"{V2}-labels.json",
        {"Tearing something just a little bit": "1", "Hitting something with something": "0"},
    )
    rows = [
        {
            "id": "78687",
            "label": "tearing paper",
            "template": "Tearing [something] just a little bit",
        },
        {"id": "42", "label": "a", "template": "Hitting [something] with [something]"},
    ]
    write(tmp_path / f"{V2}-train.json", rows)
    write(tmp_path / f"{V2}-validation.json", rows[1:])
    (tmp_path / "20bn-something-something-v2").mkdir()
    return tmp_path


class TestLists:
    def test_version_1(self, first):
        data = SomethingSomethingV1(first)
        folder = "20bn-something-something-v1"
        assert rows_of(data, "train") == [(f"{folder}/100218", 2, 12.0), (f"{folder}/7", 0, 12.0)]
        assert rows_of(data, "val") == rows_of(data, "test") == [(f"{folder}/24413", 1, 12.0)]
        assert data.entries("val")[1] == data.entries("train")[1]
        assert data.entries("train")[1][2].endswith(
            "can't roll onto a slanted surface, so it slides down"
        )

    def test_version_2(self, second):
        data = SomethingSomethingV2(second)
        folder = "20bn-something-something-v2"
        assert rows_of(data, "train") == [
            (f"{folder}/78687.webm", 1, None),
            (f"{folder}/42.webm", 0, None),
        ]
        assert rows_of(data, "val") == rows_of(data, "test") == [(f"{folder}/42.webm", 0, None)]
        assert data.entries("train")[1] == (
            "Hitting something with something",
            "Tearing something just a little bit",
        )

    @pytest.mark.parametrize("folder", [".", "labels", "annotations"])
    def test_lists_of_version_2_under_their_later_names(self, second, folder):
        wanted = rows_of(SomethingSomethingV2(second), "train")
        for file in list(second.glob("*.json")):
            (second / folder).mkdir(exist_ok=True)
            file.rename(second / folder / file.name.removeprefix(f"{V2}-"))
        assert rows_of(SomethingSomethingV2(second), "train") == wanted

    def test_every_missing_file_is_named(self, tmp_path):
        found = r"(?s)2 of 3.*v1-train\.csv: the Some.*v1: the Some"
        write(tmp_path / f"{V1}-labels.csv", "Holding something")
        with pytest.raises(FileNotFoundError, match=found):
            SomethingSomethingV1(tmp_path).entries("train")
        with pytest.raises(FileNotFoundError, match=r"(?s)3 of 3.*v2-labels\.json.*-validation"):
            SomethingSomethingV2(tmp_path).entries("test")

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("train", "7,Holding something\n", r"train\.csv, line 1: '7,Hold.*' must be <id>;<cl"),
            ("train", "7;Holding something\n8\n", r"train\.csv, line 2: '8' must be <id>;<class>"),
            ("train", "../7;Holding something\n", r"line 1: '\.\./7;Holding .* must be <id>"),
            ("train", "7;Holding\n", r"line 1: the class 'Holding' is not in some.*-labels\.csv"),
            ("train", "7;Holding something;3\n", r"the class 'Holding something;3' is not in"),
            ("train", "7;Holding something\n\n8;Holding something", r"line 2 is empty"),
            ("train", "", r"train\.csv, line 1 is empty"),
            (
                "labels",
                "Holding something\nHolding something\n",
                r"labels\.csv .*'Holding .* twice",
            ),
        ],
    )
    def test_broken_lists_of_version_1(self, first, name, text, message):
        write(first / f"{V1}-{name}.csv", text)
        with pytest.raises(ValueError, match=message):
            SomethingSomethingV1(first).entries("train")

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            (
                "train",
                '[\n{"id": "1",\n"templ',
                r"v2-train\.json, line 3, column 1 is not JSON .*whole",
            ),
            ("train", {"id": "1"}, r"v2-train\.json must hold a list"),
            ("train", [], r"v2-train\.json must hold a list"),
            ("train", [{"id": "1"}], r"train\.json, video 1 must have an id and a template, got"),
            (
                "train",
                [{"id": "1", "template": "Tearing [something]"}],
                r"video 1 \(id 1\): the class 'Tearing something' is not in some.*-labels\.json",
            ),
            ("labels", ["Tearing something"], r"labels\.json must map every class"),
            ("labels", {"a": "0", "b": "0"}, r"labels\.json: the labels must be 0 to 1"),
            ("labels", {"a": "1", "b": "2"}, r"labels\.json: the labels must be 0 to 1"),
        ],
    )
    def test_broken_lists_of_version_2(self, second, name, content, message):
        write(second / f"{V2}-{name}.json", content)
        with pytest.raises(ValueError, match=message):
            SomethingSomethingV2(second).entries("train")

    def test_a_list_that_is_no_text(self, second):
        (second / f"{V2}-train.json").write_bytes(b"\xff\xfe[\x00")
        with pytest.raises(ValueError, match=r"v2-train\.json is not text in UTF-8"):
            SomethingSomethingV2(second).entries("train")

    def test_a_rate_that_is_none(self, first):
        with pytest.raises(ValueError, match="fps=0"):
            SomethingSomethingV1(first, fps=0.0)


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    return make_demo(tmp_path_factory.mktemp("v1"), "something-v1", videos=16, progress=False)


@pytest.fixture
def layout(frames, tmp_path):
    """The built-in version 1, whose folders are links: what is broken here stays whole there."""
    root = tmp_path / "root"
    for file in frames.glob("*.csv"):
        write(root / file.name, file.read_text())
    (root / "20bn-something-something-v1").mkdir()
    for folder in (frames / "20bn-something-something-v1").iterdir():
        (root / "20bn-something-something-v1" / folder.name).symlink_to(folder)
    return root


def own_folder(root, number):
    """A copy of the n-th video's folder that may be broken."""
    link = LAYOUTS["something-v1"](root, 16, 0).target(number)
    files = {file.name: file.read_bytes() for file in link.iterdir()}
    link.unlink()
    link.mkdir()
    for name, content in files.items():
        (link / name).write_bytes(content)
    return link


def small(root, tmp_path, **options):
    return SomethingSomethingV1(
        root,
        **{
            "clips": RandomClip(4),
            "window": SizeCrop(16, sizes=((24, 16),)),
            "eval_clips": UniformClips(4, 2, clips=2),
            "eval_window": WholeFrame((25, 33)),
            "batch_size": 4,
            "cache_dir": tmp_path / "cache",
            **options,
        },
    )


class TestFrames:
    def test_are_those_of_the_pictures_by_another_reader(self, frames, tmp_path):
        data = small(frames, tmp_path, batch_size=8)
        data.prepare_data()
        data.setup("test")
        (batch,) = data.test_dataloader()
        plan = LAYOUTS["something-v1"](frames, 16, 0)
        listed, _ = data.entries("test")
        assert len(listed) == len(batch["video"])
        numbers = {plan.target(n).name: n for n in range(16)}
        for row, entry in enumerate(listed):
            folder = frames / entry.path
            shown = (12 * batch["time"][row]).round().long()  # (V, T)
            torch.testing.assert_close(batch["time"][row], shown / 12.0, check_dtype=False)
            for v, t in ((0, 0), (1, 3)):
                with Image.open(folder / f"{int(shown[v, t]) + 1:05d}.jpg") as image:
                    tall = np.asarray(image.resize((33, 25), Image.Resampling.BOX), np.float64)
                own = batch["video"][row, v, t].permute(1, 2, 0).double().numpy()
                assert np.abs(own - tall).mean() < 4
            motion = MOTIONS[plan.labels(numbers[folder.name])[0]]
            assert SAYS[motion] in data.classes[batch["label"][row]]

    def test_a_folder_that_is_missing_is_named_and_left_out(self, layout, tmp_path, caplog):
        gone = LAYOUTS["something-v1"](layout, 16, 0).target(1)
        gone.unlink()
        data = small(layout, tmp_path)
        data.prepare_data()
        data.setup("fit")
        assert "1 of 8 training videos are missing" in caplog.text
        assert gone.name in caplog.text
        assert len(data.manifest("train")) == 7

    def test_a_hole_in_the_numbers_is_found_beforehand(self, layout, tmp_path, caplog):
        folder = own_folder(layout, 1)
        (folder / "00003.jpg").unlink()
        data = small(layout, tmp_path, max_unreadable=0.2)
        data.prepare_data()
        data.setup("fit")
        hole = f"{folder.name}: frames are missing: 00004.jpg comes after 00002.jpg"
        assert hole in caplog.text
        assert len(data.manifest("train")) == 7

    def test_frames_of_two_sizes(self, layout, tmp_path, caplog):
        folder = own_folder(layout, 8)  # the first of the test
        for file in sorted(folder.iterdir())[1:]:
            Image.new("RGB", (64, 48)).save(file)
        odd = r"\d+\.jpg: is 64 x 48 pixels, the first frame of its folder \d+ x 100"
        data = small(layout, tmp_path)
        data.prepare_data()
        data.setup("test")
        with pytest.raises(UnreadableVideo, match=f"{folder.name}/{odd}.* verify: true"):
            list(data.test_dataloader())
        assert "pixels" not in caplog.text
        data = small(layout, tmp_path, verify=True, max_unreadable=0.2)
        data.prepare_data()
        data.setup("test")
        assert re.search(
            f"1 of 8 test videos cannot be read.*\n.*{folder.name}.*is 64", caplog.text
        )
        assert len(data.manifest("test")) == 7


def supervised(flip):
    return Supervised(
        OneLayer(),
        FineTuneViews(*PLAIN, flip=flip),
        lambda groups: torch.optim.SGD(groups, lr=0.01),
    )


def finetune(flip):
    return FineTune(
        backbone=OneLayer(),
        augment=FineTuneViews(*PLAIN, flip=flip),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.01),
    )


class TestMirrors:
    @pytest.mark.parametrize("learner", [finetune, supervised])
    def test_are_refused_where_classes_are_learned(self, learner, frames, tmp_path):
        data = small(frames, tmp_path)
        message = "flip=0.35: FineTuneViews mirrors clips, and the classes of SomethingSomethingV1"
        with pytest.raises(ValueError, match=message):
            trainer(tmp_path, max_steps=1).fit(learner(0.35), data)
        trained = trainer(tmp_path, max_steps=1)
        trained.fit(learner(0.0), data)
        assert trained.global_step == 1

    def test_a_test_does_not_ask_for_them(self, frames, tmp_path):
        message = "was never trained"  # what it complains of is something else
        with pytest.raises(ValueError, match=message):
            trainer(tmp_path, limit_test_batches=1).test(finetune(0.35), small(frames, tmp_path))

    def test_the_online_probe_asks_too(self):
        data = SimpleNamespace(datamodule=SimpleNamespace(handed=True))
        with pytest.raises(ValueError, match=r"flip=0.5: FineTuneViews mirrors clips"):
            OnlineProbe(num_classes=2).on_train_start(data, finetune(0.5))

    def test_only_what_mirrors_and_tells_sides_is_refused(self):
        left_and_right, either = SimpleNamespace(handed=True), SimpleNamespace(handed=False)
        mirrors, plain = nn.Sequential(VideoViews(flip=0.5)), nn.Sequential(VideoViews(flip=0.0))
        with pytest.raises(ValueError, match=r"flip=0.5: VideoViews mirrors.*augment\.flip 0"):
            check_sides(mirrors, left_and_right)
        for augment, data in (
            (plain, left_and_right),
            (None, left_and_right),
            (mirrors, either),
            (mirrors, object()),
        ):
            check_sides(augment, data)
