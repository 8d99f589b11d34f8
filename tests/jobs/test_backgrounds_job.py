"""The job that renders variants of videos: what it makes, resumes and refuses."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.io import savemat

from lightning_vssl.data.backgrounds import MIXED, VARIANTS, only_background_tiled, vary
from lightning_vssl.data.boxes import VideoBoxes, box_table, write_boxes
from lightning_vssl.data.decode import VideoReader
from lightning_vssl.data.encode import even_size
from lightning_vssl.data.foregrounds import BoxForeground, Puppets
from lightning_vssl.datamodules.jhmdb import JHMDB
from lightning_vssl.jobs.backgrounds import BackgroundJob
from tests.evaluation.small import trainer
from tests.videos import numbered_frames

SIZE = (32, 48)
CLASSES = ("catch", "jump", "walk")
CLIPS = 3


def frames_of(label, clip):
    return numbered_frames(3 + label + clip, *SIZE, seed=10 * label + clip)


def masks_of(label, clip):
    masks = np.zeros((3 + label + clip, *SIZE), bool)
    for t, mask in enumerate(masks):
        mask[8:20, 4 * t + label : 4 * t + label + 12] = True
        mask[8, 4 * t + label] = False
    return masks


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jhmdb")
    (folder / "splits").mkdir()
    for label, name in enumerate(CLASSES):
        lines = [f"{name}_{clip}.avi 2" for clip in range(CLIPS)]
        (folder / "splits" / f"{name}_test_split1.txt").write_text("\n".join(lines))
        for clip in range(CLIPS):
            place = folder / "Rename_Images" / name / f"{name}_{clip}"
            place.mkdir(parents=True)
            for t, frame in enumerate(frames_of(label, clip), start=1):
                Image.fromarray(frame).save(place / f"{t:05d}.png")
            if (label, clip) == (2, 2):
                continue  # one clip without masks
            puppet = folder / "puppet_mask" / name / f"{name}_{clip}"
            puppet.mkdir(parents=True)
            masks = masks_of(label, clip).astype(np.uint8).transpose(1, 2, 0)
            savemat(puppet / "puppet_mask.mat", {"part_mask": masks})
    return folder


def run(root, out, **arguments):
    settings = {"shard_size": 4, "drawn": 1, "quality": 0, "short_side": 32, **arguments}
    job = BackgroundJob(settings.pop("foreground", Puppets()), **settings)
    data = JHMDB(root, cache_dir=out.parent / "cache")
    trainer(out).predict(job, data)
    return job


@pytest.fixture(scope="module")
def done(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    run(root, out)
    return out


def read(file):
    with VideoReader(file) as reader:
        return reader.read(np.arange(reader.info.frames)[None])[0][0].astype(int)


def test_every_variant_is_what_the_functions_make_of_the_clip_and_the_one_it_drew(done):
    rows = pq.read_table(done / "variants.parquet").to_pylist()
    assert [row["path"] for row in rows[:2]] == [
        "Rename_Images/catch/catch_0",
        "Rename_Images/catch/catch_1",
    ]
    place = {row["path"]: (row["label"], int(row["path"][-1])) for row in rows}
    checked = 0
    for row in rows:
        if row["error"]:
            continue
        label, clip = place[row["path"]]
        frames, masks = frames_of(label, clip), masks_of(label, clip)
        drawn = {name: place[row[name]] for name in MIXED}
        assert drawn["mixed_same"][0] == label
        assert drawn["mixed_next"][0] == (label + 1) % 3
        assert (label, clip) not in drawn.values()
        for name in VARIANTS:
            behind = None
            if name in MIXED:
                behind = only_background_tiled(frames_of(*drawn[name]), masks_of(*drawn[name]))
            expected = vary(name, frames, masks, behind)
            file = done / "variants" / name / row["class"] / f"{row['class']}_{clip}.mp4"
            made = read(file)
            assert made.shape == expected.shape == (row["frames"], row["height"], row["width"], 3)
            # Chroma has half the resolution in H.264: edges of colour are soft, tones are not.
            assert np.abs(made - expected).mean() < 8, (row["path"], name)
            checked += 1
    assert checked == 8 * 8


def test_a_clip_without_masks_is_recorded_so_and_is_nobodys_background(root, done):
    rows = pq.read_table(done / "variants.parquet").to_pylist()
    lost = "Rename_Images/walk/walk_2"
    file = root / "puppet_mask" / "walk" / "walk_2" / "puppet_mask.mat"
    assert {row["path"]: row["error"] for row in rows if row["error"]} == {
        lost: f"{file}: no such file of puppet masks"
    }
    assert lost not in {row[name] for row in rows for name in MIXED}


def test_masks_are_measured_and_some_clips_drawn(done):
    row = pq.read_table(done / "variants.parquet").to_pylist()[0]
    masks = masks_of(0, 0)
    assert row["seen"] == 1
    assert row["area"] == pytest.approx(masks.mean(), rel=1e-6)
    assert row["crowded"] == 0
    assert [file.suffix for file in (done / "drawn").iterdir()] == [".png"]
    told = json.loads((done / "job.json").read_text())
    assert told["foreground"] == "puppets"
    assert told["seed"] == 0


def test_a_run_goes_on_where_it_was_killed(root, done, tmp_path, monkeypatch):
    out = tmp_path / "out"

    class Killed(Exception):
        pass

    class Dies(BackgroundJob):
        def table(self, records, manifest):
            if records[0]["row"] > 0:
                raise Killed
            return super().table(records, manifest)

    monkeypatch.setattr("tests.jobs.test_backgrounds_job.BackgroundJob", Dies)
    Dies.__name__ = "BackgroundJob"  # the folder remembers whose it is
    with pytest.raises(Killed):
        run(root, out)
    monkeypatch.undo()
    assert len(list((out / "shards").glob("*.parquet"))) == 1
    assert not (out / "variants.parquet").exists()
    before = {file: file.stat().st_mtime_ns for file in out.rglob("catch_*.mp4")}
    run(root, out)
    assert {file: file.stat().st_mtime_ns for file in before} == before  # not made again
    assert pq.read_table(out / "variants.parquet") == pq.read_table(done / "variants.parquet")
    names = sorted(file.relative_to(done) for file in done.rglob("*.mp4"))
    assert sorted(file.relative_to(out) for file in out.rglob("*.mp4")) == names
    same = [(out / n).read_bytes() == (done / n).read_bytes() for n in names]
    assert all(same)


def test_a_broken_mask_is_named_with_every_clip_it_costs(root, done, tmp_path):
    rows = pq.read_table(done / "variants.parquet").to_pylist()
    broken = rows[0]["mixed_same"]  # another clip of catch
    copy = shutil.copytree(root, tmp_path / "jhmdb")
    file = copy / broken.replace("Rename_Images", "puppet_mask") / "puppet_mask.mat"
    file.write_bytes(b"")
    run(copy, tmp_path / "out", variants=("mixed_same",), drawn=0)
    errors = {
        row["path"]: row["error"]
        for row in pq.read_table(tmp_path / "out" / "variants.parquet").to_pylist()
    }
    assert errors[broken].startswith(f"{file}: not a MATLAB file of puppet masks")
    wanted = f"its background {copy / broken} cannot be read: {file}: not a MATLAB file"
    for row in rows:
        if row["mixed_same"] == broken:
            assert errors[row["path"]].startswith(wanted)
        elif row["path"] != broken and not row["error"]:
            assert not errors[row["path"]]


def test_pairs_drawn_from_other_masks_are_another_run(root, done, tmp_path):
    copy = shutil.copytree(root, tmp_path / "jhmdb")
    run(copy, tmp_path / "out", variants=("mixed_same",), drawn=0)
    masks = copy / "puppet_mask" / "walk"
    shutil.copytree(masks / "walk_1", masks / "walk_2")  # now walk_2 can be drawn
    with pytest.raises(ValueError, match="other settings \\(backgrounds was"):
        run(copy, tmp_path / "out", variants=("mixed_same",), drawn=0)


def test_a_background_of_another_shape_is_scaled_and_odd_sides_become_even(tmp_path):
    """Two clips of one class: 33 x 47 pixels of grey 60, and 24 x 64, dark on the left."""
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "run_test_split1.txt").write_text("odd.avi 2\nwide.avi 2\n")
    odd, wide = np.full((4, 33, 47, 3), 60, np.uint8), np.full((3, 24, 64, 3), 20, np.uint8)
    wide[:, :, 32:] = 220
    seen = {"odd": np.zeros((4, 33, 47)), "wide": np.zeros((3, 24, 64))}
    seen["odd"][:3, 11:22, :16] = 1  # none in the last frame
    seen["wide"][:, :6, 32:] = 1  # a quarter of the height: below is most background
    for name, frames in (("odd", odd), ("wide", wide)):
        place = tmp_path / "Rename_Images" / "run" / name
        place.mkdir(parents=True)
        for t, frame in enumerate(frames):
            Image.fromarray(frame).save(place / f"{t:05d}.png")
        (tmp_path / "puppet_mask" / "run" / name).mkdir(parents=True)
        file = tmp_path / "puppet_mask" / "run" / name / "puppet_mask.mat"
        savemat(file, {"part_mask": seen[name].transpose(1, 2, 0).astype(np.uint8)})
    run(tmp_path, tmp_path / "out", variants=("mixed_same", "only_fg"), drawn=0)
    rows = pq.read_table(tmp_path / "out" / "variants.parquet").to_pylist()
    assert [(row["error"], row["height"], row["width"]) for row in rows] == [
        ("", 32, 46),
        ("", 24, 64),
    ]
    assert rows[0]["seen"] == 0.75
    made = read(tmp_path / "out" / "variants" / "mixed_same" / "run" / "odd.mp4")
    assert made.shape == (4, 32, 46, 3)
    for t, frame in enumerate(made):  # four frames on three of background
        assert np.abs(frame[12:20, 2:12] - (60 if t < 3 else 20)).max() < 12
        assert np.abs(frame[:6, 2:18] - 20).max() < 12
        assert np.abs(frame[:, 27:] - 220).max() < 12  # filled from below, where the actor was too
    behind = read(tmp_path / "out" / "variants" / "mixed_same" / "run" / "wide.mp4")
    assert np.abs(behind[:, 10:] - 60).max() < 12
    assert behind.shape == (3, 24, 64, 3)


def test_no_mask_at_all_and_names_that_meet_are_refused(root, tmp_path):
    copy = shutil.copytree(root, tmp_path / "jhmdb")
    shutil.rmtree(copy / "puppet_mask")
    with pytest.raises(ValueError, match=r"none of the 9 test videos below .*'puppet_mask'"):
        run(copy, tmp_path / "out", variants=("mixed_same",))
    frames = copy / "Rename_Images" / "jump"
    shutil.copytree(frames / "jump_0", frames / "jump_0.mp4")
    with (copy / "splits" / "jump_test_split1.txt").open("a") as file:
        file.write("\njump_0.mp4.avi 2\n")
    with pytest.raises(ValueError, match=r"1 files would hold variants of several.*jump_0\.mp4"):
        run(copy, tmp_path / "other", variants=("no_fg",))


def test_persons_boxes_make_no_fg(root, tmp_path):
    boxes = np.array([[[0.25, 0.25, 0.5, 0.75]]])
    names = [f"Rename_Images/{c}/{c}_{i}" for c in CLASSES for i in range(CLIPS)]
    table = box_table([VideoBoxes(name, np.zeros(1), boxes) for name in names])
    write_boxes(tmp_path / "boxes.parquet", table, source="persons")
    source = BoxForeground(tmp_path / "boxes.parquet", cache_dir=tmp_path / "cache")
    run(root, tmp_path / "out", foreground=source, variants=("original", "no_fg"), drawn=0)
    assert {file.name for file in (tmp_path / "out" / "variants").iterdir()} == {
        "original",
        "no_fg",
    }
    made = read(tmp_path / "out" / "variants" / "no_fg" / "jump" / "jump_1.mp4")
    frames = frames_of(1, 1)
    assert made[:, 9:23, 13:23].max() < 12  # 8 to 24 of 32, 12 to 24 of 48
    assert np.abs(made[:, :, 28:] - frames[:, :, 28:]).mean() < 8
    gone = BoxForeground(tmp_path / "gone.parquet")
    with pytest.raises(FileNotFoundError, match="no box file"):
        run(root, tmp_path / "other", foreground=gone, variants=("no_fg",))


def test_sizes_are_even_and_never_enlarged():
    assert even_size(240, 320, 256) == (240, 320)
    assert even_size(720, 1280, 256) == (256, 456)
    assert even_size(241, 99, 256) == (240, 100)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variants": ("no_fg", "no_fg")}, "each once"),
        ({"variants": ("sky",)}, "some of original"),
        ({"variants": ()}, "some of original"),
        ({"quality": 52}, "0 to 51"),
        ({"short_side": 1}, "2 or more"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        BackgroundJob(Puppets(), **arguments)
