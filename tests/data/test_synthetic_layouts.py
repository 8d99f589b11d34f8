"""The built-in videos as files: each benchmark's own lists and codecs, whole files, resuming."""

import configparser
import csv
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import PictureType
from PIL import Image

from lightning_vssl.data import synthetic_annotated, synthetic_recognition
from lightning_vssl.data.synthetic import LAYOUTS, MOTIONS, OBJECTS, demo, draw, make_demo

VIDEOS = 48


@pytest.fixture
def small(monkeypatch):
    """Draws every layout's videos small and short."""

    def draw_small(seed, index, split, *, size=None, frames=None, fps=None, borders="wrap"):
        frames = 130 if frames == 180 else 6
        return draw(seed, index, split, size=(32, 48), frames=frames, fps=fps, borders=borders)

    for module in (synthetic_recognition, synthetic_annotated):
        monkeypatch.setattr(module, "draw", draw_small)


def make(root, name, videos=16):
    make_demo(root, name, videos=videos, seed=0, workers=1, progress=False)
    return LAYOUTS[name](root, videos, 0)


def lists(root, name):
    """A layout with its lists and no videos."""
    layout = LAYOUTS[name](root, VIDEOS, 0)
    layout.finish()
    return layout


def decoded(path):
    """Frames, picture types and the stream's description of a video file."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        facts = {
            "codec": stream.codec_context.name,
            "tag": stream.codec_context.codec_tag,
            "rate": stream.average_rate,
            "audio": len(container.streams.audio),
        }
        frames = list(container.decode(stream))
        facts["types"] = "".join(PictureType(frame.pict_type).name for frame in frames)
        facts["keys"] = [i for i, frame in enumerate(frames) if frame.key_frame]
        return np.stack([frame.to_ndarray(format="rgb24") for frame in frames]), facts


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2))


# --- codecs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "codec", "tag", "suffix"),
    [
        ("demo", "h264", "avc1", ".mp4"),
        ("ucf101", "mpeg4", "XVID", ".avi"),
        ("hmdb51", "mpeg4", "XVID", ".avi"),
        ("kinetics", "h264", "avc1", ".mp4"),
        ("vggsound", "h264", "avc1", ".mp4"),
    ],
)
def test_codec_b_frames_rate_and_pixels_are_as_promised(tmp_path, name, codec, tag, suffix):
    layout = LAYOUTS[name](tmp_path, VIDEOS, 0)
    # A test video: kinetics' and vggsound's are the first whose encoder may use B frames.
    for number in layout.split("train"):
        layout.write(number)
        path = layout.target(number)
        assert path.suffix == suffix
        frames, facts = decoded(path)
        assert (facts["codec"], facts["tag"]) == (codec, tag)
        assert facts["audio"] == (1 if name == "vggsound" else 0)
        if "B" in facts["types"] or name not in ("kinetics", "vggsound"):
            break
    assert facts["types"].count("B") > 5
    height, width = frames.shape[1:3]
    split, index = layout.place(number)
    drawn = draw(0, index, split, size=(height, width), fps=float(facts["rate"]))
    assert frames.shape == drawn.frames.shape
    assert psnr(frames, drawn.frames) > 27
    # Frame by frame, and not one off.
    for t in (0, 1, len(frames) // 2, len(frames) - 1):
        assert psnr(frames[t], drawn.frames[t]) > 24
    if name in ("ucf101", "hmdb51"):
        assert height == 240
        assert max(np.diff(facts["keys"])) <= 12


def test_something_v2_is_vp9_in_webm_at_12_per_second(tmp_path):
    layout = LAYOUTS["something-v2"](tmp_path, VIDEOS, 0)
    layout.write(0)
    frames, facts = decoded(layout.target(0))
    assert facts["codec"] == "vp9"
    assert layout.target(0).suffix == ".webm"
    assert frames.shape[1] == 240
    drawn = draw(0, 0, "train", size=frames.shape[1:3], fps=12.0)
    assert frames.shape == drawn.frames.shape
    assert psnr(frames, drawn.frames) > 27


def test_images_are_the_middle_frames_in_folders_of_their_object(tmp_path):
    layout = LAYOUTS["images"](tmp_path, VIDEOS, 0)
    for number in (0, next(iter(layout.split("test")))):
        layout.write(number)
        split, index = layout.place(number)
        path = layout.target(number)
        kind = OBJECTS[layout.labels(number)[1]]
        folder = "train" if split == "train" else "val"
        assert path.relative_to(tmp_path).as_posix() == f"{folder}/{kind}/{kind}_{index:06d}.JPEG"
        frames = draw(0, index, split).frames
        assert psnr(np.asarray(Image.open(path)), frames[len(frames) // 2]) > 30


def test_kinetics_files_differ_in_size_rate_and_keyframes(tmp_path):
    layout = LAYOUTS["kinetics"](tmp_path, VIDEOS, 0)
    sizes, rates, keys = set(), set(), set()
    for number in range(12):
        layout.write(number)
        frames, facts = decoded(layout.target(number))
        sizes.add(frames.shape[1:3])
        rates.add(facts["rate"])
        keys.add(len(facts["keys"]))
    assert min(len(sizes), len(rates)) >= 4
    assert len(keys) >= 2
    assert any(height > width for height, width in sizes)


def test_ucf101_has_both_rates(tmp_path, small):
    layout = LAYOUTS["ucf101"](tmp_path, VIDEOS, 0)
    rates = []
    for number in (0, 7):
        layout.write(number)
        rates.append(decoded(layout.target(number))[1]["rate"])
    assert rates[0] == 25
    assert float(rates[1]) == pytest.approx(30000 / 1001, abs=1e-3)


# --- lists --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["demo", "images", "ucf101", "hmdb51", "kinetics", "vggsound"])
def test_no_two_videos_share_a_file_even_among_many(tmp_path, name):
    layout = LAYOUTS[name](tmp_path, 6_000, 0)
    assert len({layout.target(n) for n in range(6_000)}) == 6_000


@pytest.mark.parametrize("name", ["something-v1", "something-v2", "ava", "davis", "otb", "got10k"])
def test_no_two_videos_share_a_file_even_among_all(tmp_path, name):
    layout = LAYOUTS[name](tmp_path, 100_000, 0)
    assert len({layout.target(n).as_posix() for n in range(0, 100_000, 11)}) == 9_091


def test_demo_lists(tmp_path):
    layout = lists(tmp_path, "demo")
    for split, count in (("train", 40), ("test", 8)):
        rows = list(csv.DictReader((tmp_path / f"{split}.csv").open()))
        assert len(rows) == count
        for number, row in zip(layout.split(split), rows, strict=True):
            motion, kind = layout.labels(number)
            assert (row["motion"], row["object"]) == (MOTIONS[motion], OBJECTS[kind])
            assert tmp_path / row["path"] == layout.target(number)


def test_ucf101_lists_are_the_official_format_and_split_groups(tmp_path):
    layout = lists(tmp_path, "ucf101")
    folder = tmp_path / "ucfTrainTestlist"
    index = (folder / "classInd.txt").read_bytes()
    assert index.startswith(b"1 Grow\r\n2 MoveDown\r\n")
    ids = dict(reversed(line.split()) for line in index.decode().splitlines())
    everything = set()
    for fold in (1, 2, 3):
        train = (folder / f"trainlist{fold:02d}.txt").read_bytes().decode().split("\r\n")[:-1]
        test = (folder / f"testlist{fold:02d}.txt").read_bytes().decode().split("\r\n")[:-1]
        for row in train:
            path, label = row.split(" ")
            assert re.fullmatch(r"(\w+)/v_\1_g\d\d_c\d\d\.avi", path)
            assert ids[path.split("/")[0]] == label
        paths = [row.split(" ")[0] for row in train]
        assert test
        assert not set(paths) & set(test)
        assert len(paths) + len(test) == VIDEOS
        groups = [
            {int(re.search(r"_g(\d\d)_", path)[1]) for path in part} for part in (paths, test)
        ]
        assert not groups[0] & groups[1]
        assert groups[1] <= set(range(7 * fold - 6, 7 * fold + 1))
        everything |= set(paths) | set(test)
    assert everything == {
        layout.target(n).relative_to(tmp_path / "UCF-101").as_posix() for n in range(VIDEOS)
    }
    first = {layout.target(n).name for n in layout.split("test")}
    assert {Path(row).name for row in (folder / "testlist01.txt").read_text().split()} == first


def test_hmdb51_lists_mark_train_test_and_unused(tmp_path):
    layout = LAYOUTS["hmdb51"](tmp_path, 160, 0)
    layout.finish()
    files = sorted((tmp_path / "testTrainMulti_7030_splits").iterdir())
    assert len(files) == 24
    for fold in (1, 2, 3):
        uses: dict[str, str] = {}
        for file in files:
            if file.name.endswith(f"_test_split{fold}.txt"):
                for line in file.read_text().split("\n")[:-1]:
                    assert line.endswith(" ")
                    name, use, _ = line.split(" ")
                    uses[name] = use
        assert set(uses.values()) == {"0", "1", "2"}
        assert len(uses) == 160
    assert any(set("#&![](;") & set(layout.target(n).name) for n in range(48))


def test_kinetics_lists(tmp_path):
    layout = lists(tmp_path, "kinetics")
    rows = []
    for name in ("train", "val"):
        text = (tmp_path / "annotations" / f"{name}.csv").read_text()
        assert text.startswith("label,youtube_id,time_start,time_end,split\n")
        part = list(csv.DictReader(text.splitlines()))
        assert {row["split"] for row in part} == {name}
        rows += part
    for number, row in enumerate(rows):
        clip = f"{row['youtube_id']}_{int(row['time_start']):06d}_{int(row['time_end']):06d}.mp4"
        path = tmp_path / row["split"] / row["label"].replace(" ", "_") / clip
        assert path == layout.target(number)
        assert len(row["youtube_id"]) == 11
        assert row["label"].title().replace(" ", "") == MOTIONS[layout.labels(number)[0]]


def test_vggsound_list_has_four_columns_no_header_and_a_quoted_label(tmp_path):
    layout = lists(tmp_path, "vggsound")
    text = (tmp_path / "vggsound.csv").read_text()
    assert '"rest, not moving"' in text
    for number, row in enumerate(csv.reader(text.splitlines())):
        name, start, label, split = row
        assert layout.target(number).name == f"{name}_{int(start):06d}.mp4"
        assert split == layout.place(number)[0]
        assert ("," in label) == (MOTIONS[layout.labels(number)[0]] == "Rest")


def test_something_v1_folders_and_lists(tmp_path, small):
    layout = LAYOUTS["something-v1"](tmp_path, 320, 0)
    layout.finish()
    layout.write(3)
    names = sorted(path.name for path in layout.target(3).iterdir())
    assert names == [f"{t:05d}.jpg" for t in range(1, 7)]
    stem = "something-something-v1"
    templates = (tmp_path / f"{stem}-labels.csv").read_text().splitlines()
    assert len(templates) == 8
    seen = set()
    for part in ("train", "validation", "test"):
        for line in (tmp_path / f"{stem}-{part}.csv").read_text().splitlines():
            name, *template = line.split(";")
            assert template == [] if part == "test" else template[0] in templates
            seen.add(name)
    assert seen == {layout.target(n).name for n in range(320)}
    assert (tmp_path / f"{stem}-test.csv").read_text()


def test_something_v2_lists(tmp_path):
    layout = LAYOUTS["something-v2"](tmp_path, 320, 0)
    layout.finish()
    stem = "something-something-v2"
    ids = json.loads((tmp_path / f"{stem}-labels.json").read_text())
    assert sorted(ids.values()) == [str(i) for i in range(8)]
    seen = set()
    for part in ("train", "validation", "test"):
        rows = json.loads((tmp_path / f"{stem}-{part}.json").read_text())
        assert rows
        for row in rows:
            seen.add(f"{row['id']}.webm")
            if part == "test":
                assert set(row) == {"id"}
            else:
                assert row["template"].replace("[", "").replace("]", "") in ids
                assert row["placeholders"][0] in row["label"]
    assert seen == {layout.target(n).name for n in range(320)}


def test_davis_folders_palette_masks_and_lists(tmp_path, small):
    layout = make(tmp_path, "davis")
    train = (tmp_path / "ImageSets/2017/train.txt").read_text().split()
    val = (tmp_path / "ImageSets/2017/val.txt").read_text().split()
    assert (len(train), len(val)) == (8, 8)
    for number, name in enumerate(train + val):
        split, index = layout.place(number)
        size = {"size": (32, 48), "frames": 6}
        drawn = draw(0, index, split, borders="bounce", **size)
        frames = sorted((tmp_path / "JPEGImages/480p" / name).iterdir())
        masks = sorted((tmp_path / "Annotations/480p" / name).iterdir())
        assert [f.name for f in frames] == [f"{t:05d}.jpg" for t in range(6)]
        assert [m.name for m in masks] == [f"{t:05d}.png" for t in range(6)]
        first = np.array(Image.open(masks[0]))
        ids = np.unique(first)
        assert ids.tolist() == list(range(len(ids)))
        assert ids.tolist() == list(range(len(np.unique(drawn.masks[0]))))
        for t, file in enumerate(masks):
            image = Image.open(file)
            assert image.mode == "P"
            assert image.getpalette()[:12] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
            mask = np.array(image)
            assert ((mask == 1) == (drawn.masks[t] == 1)).all()
            assert mask.max() < len(ids)
            assert psnr(np.array(Image.open(frames[t])), drawn.frames[t]) > 24
    for line in (tmp_path / "ImageSets/2016/val.txt").read_text().splitlines():
        frame, mask = line.split(" ")
        assert (tmp_path / frame.lstrip("/")).is_file()
        assert (tmp_path / mask.lstrip("/")).is_file()


def test_davis_sequences_are_480_lines(tmp_path):
    layout = LAYOUTS["davis"](tmp_path, VIDEOS, 0)
    layout.write(0)
    mask = Image.open(next(layout.target(0).iterdir()))
    assert mask.size == (854, 480)


def test_otb_boxes_count_from_one_with_three_separators(tmp_path, small):
    layout = make(tmp_path, "otb", videos=32)
    separators, two = set(), 0
    for number in range(32):
        folder = layout.target(number).parent
        split, index = layout.place(number)
        drawn = draw(0, index, split, size=(32, 48), frames=6, borders="bounce")
        files = sorted(folder.glob("groundtruth_rect*.txt"))
        two += len(files) == 2
        for k, file in enumerate(files):
            assert file.name == ("groundtruth_rect.txt" if len(files) == 1 else file.name)
            rows = file.read_text().splitlines()
            separators.add(re.sub(r"\d", "", rows[0])[0])
            boxes = np.array([[int(v) for v in re.split(r"[,\t ]", row)] for row in rows])
            corner = boxes[:, :2] - 1
            found = np.concatenate([corner, corner + boxes[:, 2:]], axis=1)
            assert (found == drawn.boxes[:, k]).all()
        names = sorted(path.name for path in layout.target(number).iterdir())
        assert names == [f"{t:04d}.jpg" for t in range(1, 7)]
    assert separators == {",", "\t", " "}
    assert two >= 1


def test_got10k_sequences(tmp_path, small):
    layout = make(tmp_path, "got10k", videos=64)
    counts = {}
    for part in ("train", "val", "test"):
        names = (tmp_path / part / "list.txt").read_text().split()
        counts[part] = len(names)
        assert names == [f"GOT-10k_{part.capitalize()}_{i:06d}" for i in range(1, len(names) + 1)]
        for name in names:
            folder = tmp_path / part / name
            rows = (folder / "groundtruth.txt").read_text().splitlines()
            assert len(rows) == (1 if part == "test" else 6)
            assert (folder / "cover.label").exists() == (part != "test")
    assert counts == {"train": 48, "val": 8, "test": 8}
    for number in (0, 5, 50):
        split, index = layout.place(number)
        drawn = draw(0, index, split, size=(32, 48), frames=6, fps=10.0, borders="bounce")
        folder = layout.target(number)
        boxes = np.loadtxt(folder / "groundtruth.txt", delimiter=",")
        assert np.allclose(np.c_[boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], drawn.boxes[:, 0])
        cover = np.loadtxt(folder / "cover.label")
        assert (np.abs(cover / 8 - drawn.cover[:, 0]) <= 1 / 8).all()
        assert np.loadtxt(folder / "absence.label").tolist() == (cover == 0).tolist()
        meta = configparser.ConfigParser()
        meta.read(folder / "meta_info.ini")
        assert meta["METAINFO"]["object_class"] == OBJECTS[drawn.object].lower()
        assert meta["METAINFO"]["anno_fps"] == "10Hz"


def test_ava_boxes_actions_and_label_maps(tmp_path, small):
    layout = make(tmp_path, "ava")
    maps = []
    for name in ("ava_action_list_v2.2.pbtxt", "ava_action_list_v2.2_for_activitynet_2019.pbtxt"):
        text = (tmp_path / name).read_text()
        items = re.findall(r'item \{\s+name: "([^"]+)"\s+id: (\d+)\s+\}', text)
        maps.append({int(number): label for label, number in items})
    assert set(maps[0]) - set(maps[1]) == {2}
    assert len(maps[1]) == len(MOTIONS) + len(OBJECTS)
    rows = []
    for name in ("train", "val"):
        rows += list(csv.reader((tmp_path / f"ava_{name}_v2.2.csv").open()))
        for video, second in csv.reader(
            (tmp_path / f"ava_{name}_excluded_timestamps_v2.2.csv").open()
        ):
            assert (tmp_path / "videos" / f"{video}.mp4").is_file()
            assert second == "0904"
    main = [row for row in rows if row[7] == "0" and row[6] != "2"]
    assert {row[1] for row in rows} == {"0902", "0903", "0904"}
    for video, second, *box, action, _ in main:
        number = int(video.removeprefix("demo-"))
        split, index = layout.place(number)
        motion, kind = layout.labels(number)
        assert maps[0][int(action)] in (MOTIONS[motion], OBJECTS[kind])
        drawn = draw(0, index, split, size=(32, 48), frames=130, fps=30)
        found = np.array(box, float) * [48, 32, 48, 32]
        assert np.allclose(found, drawn.visible[(int(second) - 900) * 30, 0], atol=0.03)
    assert len(main) >= 2 * 3 * 14


def test_ava_lends_clips_to_kinetics(tmp_path, small):
    layout = make(tmp_path, "ava")
    for name, split, one, black in (("train", "train", 1, 5), ("val", "test", 9, 13)):
        *rows, nobody = csv.reader((tmp_path / f"kinetics_{name}_v1.0.csv").open())
        assert nobody == [f"clip-{black:06d}", "11.466667"]
        assert {tuple(row[:2]) for row in rows} == {(f"clip-{one:06d}", "11.466667")}
        films = sorted((tmp_path / "kinetics" / name).glob("*/*.mp4"), key=lambda p: p.name)
        assert [p.name for p in films] == [
            f"clip-{number:06d}_000010_000013.mp4" for number in (one, black)
        ]
        frames, facts = decoded(films[0])
        assert (len(frames), facts["rate"]) == (90, 30)
        assert decoded(films[1])[0].max() < 4
        drawn = draw(0, layout.place(one)[1], split, size=(32, 48), frames=130, fps=30)
        assert films[0].parent.name == MOTIONS[drawn.motion]
        assert psnr(frames, drawn.frames[:90]) > 25
        found = np.array(rows[0][2:6], float) * [48, 32, 48, 32]
        assert np.allclose(found, drawn.visible[round(1.466667 * 30), 0], atol=0.03)
        assert len(rows) == 3 + 2 * (len(drawn.objects) - 1)  # shape, seen; the first: its motion


# --- making -------------------------------------------------------------------------------------


def contents(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.name.endswith(".part")
    }


def test_processes_and_interruptions_change_no_byte(tmp_path, small, monkeypatch):
    make(tmp_path / "once", "demo", videos=24)
    make_demo(tmp_path / "two", videos=24, workers=2, progress=False)

    write = synthetic_recognition.DemoLayout.write
    written = []

    def interrupted(self, number):
        if len(written) == 5:
            raise KeyboardInterrupt
        write(self, number)
        written.append(number)

    monkeypatch.setattr(synthetic_recognition.DemoLayout, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "again", "demo", videos=24)
    assert not (tmp_path / "again" / "train.csv").exists()
    written.clear()
    written.extend([-1] * 6)  # past the number at which it is interrupted
    make(tmp_path / "again", "demo", videos=24)
    assert sorted(written[6:]) == list(range(5, 24))
    assert contents(tmp_path / "once") == contents(tmp_path / "two") == contents(tmp_path / "again")
    written.clear()
    make(tmp_path / "again", "demo", videos=24)
    assert not written


@pytest.mark.slow
def test_a_killed_run_leaves_whole_files_and_goes_on(tmp_path):
    root = tmp_path / "killed"
    code = (
        "from lightning_vssl.data.synthetic import make_demo\n"
        f"make_demo({str(root)!r}, videos=64, workers=1, progress=False)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    deadline = time.monotonic() + 60
    while len(list(islice(root.rglob("*.mp4"), 4))) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = list(root.rglob("*.mp4"))
    assert 4 <= len(found) < 64
    for path in found:
        frames, _ = decoded(path)
        assert frames.shape == draw(0, int(path.stem), "train").frames.shape
    before = {path: path.stat().st_mtime_ns for path in found}
    make_demo(root, videos=64, workers=1, progress=False)
    assert {path: path.stat().st_mtime_ns for path in found} == before
    assert len(list(root.rglob("*.mp4"))) == 64


def test_another_collection_in_the_folder_is_refused(tmp_path, small):
    make(tmp_path / "a", "demo")
    with pytest.raises(
        ValueError, match=r"holds other built-in videos .*'videos': 16.* than asked"
    ):
        make(tmp_path / "a", "demo", videos=24)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match=r"root must be an empty folder .* name a new folder"):
        make(tmp_path / "b", "demo")


def test_wrong_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"videos must be in 16\.\.100000, got 8"):
        make_demo(tmp_path, videos=8)
    with pytest.raises(
        ValueError, match=r"layout must be one of demo, images, ucf101, .* got 'imagenet'"
    ):
        make_demo(tmp_path, "imagenet")
    with pytest.raises(ValueError, match=r"workers must be at least 1 .* got 0"):
        make_demo(tmp_path, workers=0)


@pytest.mark.parametrize("name", ["demo", "ucf101", "something-v1"])
def test_a_full_disk_is_one_clear_error_and_leaves_no_file(tmp_path, small, name):
    layout = LAYOUTS[name](tmp_path, 16, 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        with pytest.raises(OSError, match="cannot write built-in videos: File too large") as caught:
            layout.write(0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(layout.target(0)) in str(caught.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    layout.write(0)
    assert layout.target(0).exists()


def test_the_command_makes_one_layout_or_all(tmp_path, small, capsys):
    demo(tmp_path / "one", videos=16, workers=1)
    assert (tmp_path / "one" / "train.csv").is_file()
    demo(tmp_path / "all", videos=16, layout="all", workers=1)
    assert {path.name for path in (tmp_path / "all").iterdir()} == set(LAYOUTS)
    assert capsys.readouterr().out.count("16 videos in") == 1 + len(LAYOUTS)
