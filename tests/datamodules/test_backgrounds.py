"""JHMDB, mini-Kinetics and ImageNet-9: lists, variants of the test, and what is missing."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import ImageNetInfo

from lightning_vssl.data.backgrounds import VARIANTS
from lightning_vssl.data.clips import UniformClips
from lightning_vssl.data.foregrounds import read_puppet
from lightning_vssl.data.imagenet9 import CLASSES, SYNSETS, label_of, superclasses
from lightning_vssl.data.manifest import build_manifest
from lightning_vssl.data.synthetic import OBJECTS, draw
from lightning_vssl.data.synthetic_annotated import JHMDBLayout
from lightning_vssl.data.windows import CentreSquare
from lightning_vssl.datamodules.imagenet9 import ImageNet9
from lightning_vssl.datamodules.jhmdb import JHMDB
from lightning_vssl.datamodules.mini_kinetics import MiniKinetics
from tests.datamodules.background_files import (
    write_challenge,
    write_imagenet9,
    write_lists,
    write_rendered,
)
from tests.videos import numbered_frames, write_video

SMALL = {"eval_clips": UniformClips(frames=4, stride=1, clips=1), "eval_window": CentreSquare(32)}


@pytest.fixture
def jhmdb(tmp_path):
    root = tmp_path / "jhmdb"
    (root / "splits").mkdir(parents=True)
    for name in ("brush_hair", "catch"):
        lines = [f"{name}_(#{i})_u_nm.avi {1 + i % 2}" for i in range(4)]
        for split in (1, 2, 3):
            (root / "splits" / f"{name}_test_split{split}.txt").write_text("\n".join(lines))
        for i in range(4):
            folder = root / "Rename_Images" / name / f"{name}_(#{i})_u_nm"
            folder.mkdir(parents=True)
            for t, frame in enumerate(numbered_frames(3, 24, 32), start=1):
                Image.fromarray(frame).save(folder / f"{t:05d}.png")
    return root


@pytest.fixture
def kinetics(tmp_path):
    root = tmp_path / "kinetics"
    (root / "annotations").mkdir(parents=True)
    for split, names in (("train", "abcdef"), ("val", "uvwx")):
        rows = ["label,youtube_id,time_start,time_end,split"]
        for i, name in enumerate(names):
            label = ("abseiling", "air drumming", "zumba")[i % 3]
            rows.append(f"{label},{name * 11},{i},{i + 10},{split}")
            clip = f"{name * 11}_{i:06d}_{i + 10:06d}.mp4"
            write_video(root / split / label.replace(" ", "_") / clip, numbered_frames(3, 16, 16))
        (root / "annotations" / f"{split}.csv").write_text("\n".join(rows))
    return root


def test_jhmdb_reads_its_lists(jhmdb):
    data = JHMDB(jhmdb)
    train, classes = data.entries("train")
    assert classes == ("brush_hair", "catch")
    assert [(e.path, e.label, e.fps) for e in train][2:] == [
        ("Rename_Images/catch/catch_(#0)_u_nm", 1, 30.0),
        ("Rename_Images/catch/catch_(#2)_u_nm", 1, 30.0),
    ]
    assert data.entries("val") == data.entries("test")
    assert data.variants == ()


def test_a_test_of_jhmdb_has_every_clip_in_all_variants(jhmdb, tmp_path):
    rendered = write_rendered(JHMDB(jhmdb), tmp_path / "out" / "variants", VARIANTS)
    data = JHMDB(jhmdb, rendered=rendered, cache_dir=tmp_path / "c", batch_size=3, **SMALL)
    data.prepare_data()
    data.setup("test")
    batches = list(data.test_dataloader())
    labels = torch.cat([batch["label"] for batch in batches])
    index = torch.cat([batch["index"] for batch in batches])
    variant = data.row_variants()[index]
    assert variant.tolist() == np.repeat(np.arange(8), 4).tolist()
    assert labels.tolist() == [0, 0, 1, 1] * 8
    video = torch.cat([batch["video"] for batch in batches]).float()
    for number in range(8):  # each variant has a texture of its own: files are not mixed up
        own = video[variant == number]
        assert (own - own[0]).abs().max() == 0
    tones = [video[variant == n].mean(dim=(0, 1, 2, 4, 5)) for n in range(8)]
    assert min((a - b).abs().max() for i, a in enumerate(tones) for b in tones[:i]) > 1
    assert len(data.entries("val")[0]) == 4  # as they are


def test_what_is_missing_is_named(jhmdb, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"(?s)JHMDB: 2 of 2 .*splits.zip.*Rename_Images"):
        JHMDB(tmp_path / "nowhere").entries("train")
    data = JHMDB(jhmdb, rendered=tmp_path / "variants", cache_dir=tmp_path / "c", **SMALL)
    for name in ("original", "mixed_same", "mixed_rand", "mixed_next", "only_fg"):
        (tmp_path / "variants" / name).mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"no folder of no_fg, only_bg_b, .*jobs/backg"):
        data.entries("test")
    write_rendered(JHMDB(jhmdb), tmp_path / "variants", VARIANTS)
    (tmp_path / "variants" / "no_fg" / "catch" / "catch_(#3)_u_nm.mp4").unlink()
    data.prepare_data()
    with pytest.raises(FileNotFoundError, match=r"(?s)1 of 32 test videos.*no_fg/catch/catch_"):
        data.setup("test")


@pytest.mark.parametrize("variants", [("original", "original"), ("orginal",)])
def test_unknown_variants_are_refused(jhmdb, tmp_path, variants):
    with pytest.raises(ValueError, match=r"some of original, mixed_same, .* each once"):
        JHMDB(jhmdb, rendered=tmp_path, variants=variants)


def test_mini_kinetics_has_the_videos_of_its_lists(kinetics, tmp_path, caplog):
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "train_ytid_list.txt").write_text("aaaaaaaaaaa\nccccccccccc\nddddddddddd\n")
    (lists / "val_ytid_list.txt").write_text("uuuuuuuuuuu\nwwwwwwwwwww\n")
    data = MiniKinetics(kinetics, lists=lists)
    train, classes = data.entries("train")
    assert classes == ("abseiling", "zumba")  # no training video of "air drumming" is listed
    assert [(e.path[-29:-4], e.label) for e in train] == [
        ("aaaaaaaaaaa_000000_000010", 0),
        ("ccccccccccc_000002_000012", 1),
        ("ddddddddddd_000003_000013", 0),
    ]
    test, again = data.entries("test")
    assert again == classes
    assert [e.label for e in test] == [0, 1]
    assert "names 2 classes, it should be 200" in caplog.text
    rendered = write_rendered(data, tmp_path / "variants", ("original", "no_fg"))
    data = MiniKinetics(kinetics, lists=lists, rendered=rendered, cache_dir=tmp_path / "c")
    data.prepare_data()
    data.setup("test")
    assert data.row_variants().tolist() == [0, 0, 1, 1]
    assert data.manifest("test").labels.tolist() == [0, 1, 0, 1]


def test_mini_kinetics_says_what_its_lists_have_and_the_csv_lacks(kinetics, tmp_path, caplog):
    lists = write_lists(tmp_path / "lists", kinetics)
    with (lists / "train_ytid_list.txt").open("a") as file:
        file.write("zzzzzzzzzzz\n")
    assert len(MiniKinetics(kinetics, lists=lists).entries("train")[0]) == 6
    assert "the CSV lacks 1 of the 7 videos" in caplog.text
    with pytest.raises(ValueError, match=r"lacks 1 \(zzzzzzzzzzz, ...\)"):
        MiniKinetics(kinetics, lists=lists, max_missing=0.1).entries("train")
    (lists / "val_ytid_list.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"val_ytid_list.txt: github.com/s9xie"):
        MiniKinetics(kinetics, lists=lists).entries("val")


class TestImageNet9:
    def test_tests_read_all_variants_and_not_the_training(self, tmp_path):
        challenge = write_challenge(tmp_path / "bg", size=24, variants=("original", "no_fg"))
        data = ImageNet9(
            tmp_path / "nowhere",
            challenge=challenge,
            variants=("original", "no_fg"),
            size=24,
            batch_size=5,
            cache_dir=tmp_path / "c",
        )
        entries, classes = data.entries("test")
        build_manifest(entries, data.root, classes, cache_dir=tmp_path / "c", progress=False)
        data.setup("test")
        assert data.num_classes == 0
        batches = list(data.test_dataloader())
        assert torch.cat([b["label"] for b in batches]).tolist() == [*range(9), *range(9)]
        rows = torch.cat([b["index"] for b in batches])
        assert data.row_variants()[rows].tolist() == [0] * 9 + [1] * 9
        picture = np.asarray(Image.open(challenge / "no_fg" / "val" / "03_reptile" / "11_0.JPEG"))
        shown = torch.cat([b["video"] for b in batches])[12, 0, 0].permute(1, 2, 0)
        assert np.abs(shown.numpy().astype(int) - picture).max() <= 1  # as it is, not cropped

    def test_training_knows_its_own_classes(self, tmp_path):
        root = write_imagenet9(tmp_path / "in")
        data = ImageNet9(root, challenge=tmp_path / "bg", cache_dir=tmp_path / "c")
        assert [entry.label for entry in data.entries("val")[0]] == list(range(9))
        assert data.entries("train")[1][2] == "02_vehicle"

    def test_folders_that_are_not_the_nine_are_refused(self, tmp_path):
        challenge = write_challenge(tmp_path / "bg", variants=("original",))
        data = ImageNet9(tmp_path, challenge=challenge, variants=("original",))
        (challenge / "original" / "val" / "08_fish").rename(challenge / "original" / "val" / "x")
        with pytest.raises(ValueError, match=r"a folder for each of dog, bird, .*07_primate, x"):
            data.entries("test")
        data = ImageNet9(tmp_path, challenge=challenge)
        with pytest.raises(FileNotFoundError, match=r"(?s)ImageNet-9: 7 of 8.*MadryLab"):
            data.entries("test")

    def test_folders_are_known_by_name_or_synset(self):
        names = ["02_wheeled vehicle", "06_musical instrument", "n02512053", "Dog", "catdog_bird"]
        assert [label_of(name) for name in names] == [2, 6, 8, 0, -1]

    def test_the_thousand_classes_fall_below_the_nine_synsets(self):
        """Against the counts of Xiao et al., and classes whose place is known."""
        mapping = superclasses()
        counts = torch.bincount(mapping[mapping >= 0], minlength=9).tolist()
        assert counts == [116, 52, 42, 36, 35, 27, 26, 20, 16]
        assert int((mapping < 0).sum()) == 630
        info = ImageNetInfo()
        told = {
            name: label
            for label, words in enumerate(
                [
                    ("golden retriever", "Chihuahua"),
                    ("cock", "flamingo"),
                    ("minivan", "tank", "tricycle"),
                    ("box turtle", "sidewinder"),
                    ("lion", "white wolf", "giant panda"),
                    ("bee", "lacewing"),
                    ("violin", "accordion", "marimba"),
                    ("gorilla", "indri"),
                    ("tench", "puffer"),
                ]
            )
            for name in words
        }
        told |= {
            "banana": -1,
            "laptop": -1,
            "airliner": -1,
            "tarantula": -1,
            "tabby": -1,
        }
        for name, label in told.items():
            found = [
                i
                for i in range(1000)
                if info.index_to_description(i).split(",")[0].lower() == name.lower()
            ]
            assert found, name
            assert int(mapping[found[0]]) == label, name

    def test_other_classifiers_are_refused(self):
        assert superclasses(9).tolist() == list(range(9))
        assert len(CLASSES) == len(SYNSETS) == 9
        with pytest.raises(ValueError, match="ImageNet's 1,000 classes or of its own 9, got 101"):
            superclasses(101)


def test_the_built_in_layout_is_read_with_its_masks(tmp_path):
    layout = JHMDBLayout(tmp_path / "one", 16, 0)
    again = JHMDBLayout(tmp_path / "two", 16, 0)
    for one in (layout, again):
        one.write(4)  # the first whose masks end early
        one.finish()
    split, index = layout.place(4)
    count = len(list((layout.root / "Rename_Images").rglob("*.png")))
    drawn = draw(0, index, split, size=(240, 320), frames=count, fps=30.0, borders="bounce")
    file = layout.target(4) / "puppet_mask.mat"
    actor = drawn.masks == 1
    assert np.array_equal(read_puppet(file, count)[:-2], actor[:-2])
    assert np.array_equal(read_puppet(file, count)[-1], actor[-3])  # the last one is repeated
    assert file.read_bytes() == (again.target(4) / "puppet_mask.mat").read_bytes()
    entries, classes = JHMDB(layout.root).entries("train")
    paths = {entry.path: classes[entry.label] for entry in entries}
    own = layout.target(4).relative_to(layout.root / "puppet_mask").as_posix()
    assert paths[f"Rename_Images/{own}"] == OBJECTS[drawn.object].lower()
