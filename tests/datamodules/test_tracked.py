import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_vssl.data.synthetic_annotated import GOT10kLayout, OTBLayout
from lightning_vssl.data.track_files import TrackFiles, read_boxes, read_numbers, read_polygons
from lightning_vssl.datamodules.got10k import GOT10k
from lightning_vssl.datamodules.otb import OTB, official_sequences


def images(folder, names, size=(40, 30)):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", size).save(folder / name)


def otb_sequence(root, name, lines, names, file="groundtruth_rect.txt"):
    images(root / name / "img", names)
    (root / name / file).write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def built_in(tmp_path_factory):
    root = tmp_path_factory.mktemp("built-in")
    otb = OTBLayout(root / "otb", 32, 0)
    for number in (0, 1, 7):  # commas, tabs; the last has two targets
        otb.write(number)
    got10k = GOT10kLayout(root / "got10k", 64, 0)
    for number in (0, 48, 56):
        got10k.write(number)
        folder = got10k.target(number)
        (folder.parent / "list.txt").write_text(f"{folder.name}\n")
    return root


def test_the_table_of_otb_is_that_of_the_benchmark():
    rows = {row.name: row for row in official_sequences()}
    assert len(rows) == 100
    assert len({row.folder for row in rows.values()}) == 98
    assert sum(row.frames for row in rows.values()) == 59_040
    assert sum(row.otb2013 for row in rows.values()) == 51
    assert sum(row.otb50 for row in rows.values()) == 50
    assert rows["Human4"].annotation == "groundtruth_rect.2.txt"
    assert [rows[f"{n}.{k}"].frames for n in ("Jogging", "Skating2") for k in (1, 2)] == [
        307,
        307,
        473,
        473,
    ]
    first = {name: row.first for name, row in rows.items() if row.first != 1}
    assert first == {"BlurCar1": 247, "BlurCar3": 3, "BlurCar4": 18, "David": 300}
    assert {name for name, row in rows.items() if row.digits != 4} == {"Board"}


@pytest.mark.parametrize("separator", [",", "\t", " ", ", ", " \t"])
def test_boxes_are_read_whatever_separates_them(tmp_path, separator):
    file = tmp_path / "boxes.txt"
    file.write_text(
        "\n".join(separator.join(row) for row in (["1", "1", "3", "2"], ["2.5", "-3", "4", "0"]))
        + "\n\n"
    )
    # 1-indexed (1, 1, 3, 2) covers the first three pixels of the first two rows.
    assert read_boxes(file, first=1).tolist() == [[0, 0, 3, 2], [1.5, -4, 5.5, -4]]
    assert read_boxes(file, first=0).tolist() == [[1, 1, 4, 3], [2.5, -3, 6.5, -3]]


def test_polygons_become_the_upright_boxes_around_them(tmp_path):
    file = tmp_path / "groundtruth.txt"
    file.write_text("30,10,50,20,40,40,20,30\n5.5,1,1,3,2,9,8,4\nnan,1,1,3,2,9,8,4\n")
    boxes = read_polygons(file, first=1)
    assert boxes[:2].tolist() == [[19, 9, 49, 39], [0, 0, 7, 8]]
    assert boxes[2].isnan().all()
    file.write_text("30,10,50,20,40,40,20,30\n1,2,3,4\n")
    with pytest.raises(ValueError, match=r"groundtruth\.txt, line 2: expected 8 number"):
        read_polygons(file, first=1)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 2 3", "line 2: expected 4 number"),
        ("1 2 3 4 5", "line 2: expected 4 number"),
        ("1 2 3 x", "line 2: expected 4 number"),
        ("1 2 inf 4", "line 2: expected 4 number"),
        ("", "line 2: expected 4 number"),
        ("1 2 -3 4", "line 2: .* negative width or height"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, message):
    file = tmp_path / "boxes.txt"
    file.write_text(f"1 2 3 4\n{line}\n1 2 3 4\n")
    with pytest.raises(ValueError, match=rf"boxes\.txt, {message}"):
        read_boxes(file, first=1)


def test_a_box_said_to_be_nan_is_nan_as_a_whole(tmp_path):
    file = tmp_path / "boxes.txt"
    file.write_text("1 2 3 4\nNaN NaN NaN NaN\n1 nan 3 4\n")
    boxes = read_boxes(file, first=1)
    assert boxes.isnan().all(1).tolist() == [False, True, True]


def test_frames_begin_and_end_where_the_benchmark_says(tmp_path, monkeypatch):
    # David is frames 300 to 770 of its folder, BlurCar3's files begin at 3: here with all of them.
    names = [f"{n:04d}.jpg" for n in range(1, 772)]
    otb_sequence(tmp_path, "David", ["1,1,5,5"] * 471, names)
    otb_sequence(tmp_path, "BlurCar3", ["1\t1\t5\t5"] * 357, names[2:359])
    sequences = {s.name: s for s in OTB(tmp_path, version="found").sequences("test")}
    david, car = sequences["David"].frames, sequences["BlurCar3"].frames
    assert [david.files[0].name, david.files[-1].name] == ["0300.jpg", "0770.jpg"]
    assert [car.files[0].name, car.files[-1].name] == ["0003.jpg", "0359.jpg"]
    (tmp_path / "David" / "img" / "0500.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks 1 of the 471 frames .* first 0500\.jpg"):
        OTB(tmp_path, version="found").setup("test")


def test_missing_folders_of_otb_are_all_listed(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"97 of 97(.|\n)*Woman: Woman\.zip of cvlab|98 of"):
        OTB(tmp_path).setup("test")
    with pytest.raises(FileNotFoundError, match="50 of 50 official files"):
        OTB(tmp_path, version="otb2013").setup("test")
    with pytest.raises(ValueError, match="OTB has no val sequences"):
        OTB(tmp_path).setup("validate")
    with pytest.raises(ValueError, match="got 'otb100'"):
        OTB(tmp_path, version="otb100")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["5 5 3 3"], "has 1 boxes for the 2 frames of One"),
        (["5 5 3 3"] * 3, "has 3 boxes for the 2 frames of One"),
        (["41 5 3 3", "5 5 3 3"], "line 1: trackers start from the first box"),
        (["5 5 0 3", "5 5 3 3"], "line 1: trackers start from the first box"),
        (["NaN NaN NaN NaN", "5 5 3 3"], "line 1: trackers start from the first box"),
        (["-5 5 6 3", "5 5 3 3"], "line 1: trackers start from the first box"),
    ],
)
def test_boxes_that_do_not_fit_the_frames_are_refused(tmp_path, lines, message):
    otb_sequence(tmp_path, "One", lines, ["0001.jpg", "0002.jpg"])
    with pytest.raises(ValueError, match=message):
        OTB(tmp_path, version="found").setup("test")


def test_later_boxes_are_taken_as_they_stand(tmp_path):
    lines = ["40 5 3 3", "100 5 3 3", "5 5 0 0"]  # the first one has one column in the frame
    otb_sequence(tmp_path, "One", lines, [f"{n:04d}.jpg" for n in (1, 2, 3)])
    (sequence,) = OTB(tmp_path, version="found").sequences("test")
    assert sequence.boxes.tolist() == [[39, 4, 42, 7], [99, 4, 102, 7], [4, 4, 4, 4]]


def test_two_targets_are_two_sequences_with_their_attributes(tmp_path):
    names = ["0001.jpg", "0002.jpg"]
    for target, left in ((1, 2), (2, 9)):
        file = f"groundtruth_rect.{target}.txt"
        otb_sequence(tmp_path, "Two", [f"{left} 2 4 4"] * 2, names, file)
    (tmp_path / "Two" / "attrs.txt").write_text("SV, DEF, FM")
    data = OTB(tmp_path, version="found")
    found = data.sequences("test")
    assert [sequence.name for sequence in found] == ["Two.1", "Two.2"]
    assert {data.folder(name) for name in ("Two.1", "Two.2")} == {tmp_path / "Two"}
    assert [float(sequence.boxes[1, 0]) for sequence in found] == [1, 8]
    assert found[0].frames.files == found[1].frames.files
    assert found[0].attributes == ("SV", "DEF", "FM")


def test_built_in_otb_is_read(built_in):
    sequences = OTB(built_in / "otb", version="found").sequences("test")
    assert [s.name for s in sequences] == ["Demo00001", "Demo00002", "Demo00008.1", "Demo00008.2"]
    for sequence in sequences:
        height, width = sequence.frames.size
        assert sequence.frames.frame(0).shape == (3, height, width)
        low, high = sequence.boxes[:, :2], sequence.boxes[:, 2:]
        assert (low > -1).all()
        assert (high <= torch.tensor([width, height]) + 1).all()
        assert (high - low > 0).all()


def test_built_in_got10k_is_read_split_by_split(built_in):
    data = GOT10k(built_in / "got10k")
    counts = {split: len(data.sequences(split)) for split in ("train", "val", "test")}
    assert counts == {"train": 1, "val": 1, "test": 1}
    for sequence in data.sequences("val"):
        hidden = sequence.cover == 0
        assert torch.equal(sequence.boxes.isnan().all(1), hidden)
        assert torch.equal(sequence.absent, hidden)
    for sequence in data.sequences("test"):
        assert sequence.boxes.isnan().all(1).tolist() == [False] + [True] * (len(sequence) - 1)
        assert sequence.cover is None
    loader = data.test_dataloader()
    assert [s.name for s in loader] == data.names("val")


def test_an_unseen_object_has_no_box_whatever_the_file_says(built_in, tmp_path):
    shutil.copytree(built_in / "got10k", tmp_path / "got10k")
    data = GOT10k(tmp_path / "got10k")
    folder = tmp_path / "got10k" / "val" / data.names("val")[0]
    count = len(read_numbers(folder / "cover.label", 1))
    levels = ["8", "0", "3", "1"] + ["8"] * (count - 4)
    (folder / "cover.label").write_text("\n".join(levels))
    sequence = data.sequences("val")[0]
    assert sequence.boxes.isnan().all(1).nonzero().flatten().tolist() == [1]
    assert sequence.cover[:4].tolist() == [8, 0, 3, 1]

    levels[2] = "9"
    (folder / "cover.label").write_text("\n".join(levels))
    with pytest.raises(ValueError, match=r"cover\.label, line 3: a whole number from 0 to 8"):
        GOT10k(tmp_path / "got10k").setup("test")
    (folder / "cover.label").write_text("8\n" * (count - 1))
    with pytest.raises(ValueError, match=rf"{count - 1} labels for {count} frames"):
        GOT10k(tmp_path / "got10k").setup("test")
    (folder / "cover.label").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 official files(.|\n)*cover\.label"):
        GOT10k(tmp_path / "got10k").setup("test")
    with pytest.raises(FileNotFoundError, match=r"list\.txt"):
        GOT10k(tmp_path, split="test").setup("test")


@pytest.mark.parametrize("layout", ["otb", "got10k"])
def test_what_a_tracker_found_is_written_as_the_toolkit_reads_it(tmp_path, layout):
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(9, 2, generator=generator, dtype=torch.float64) * 100
    boxes = torch.cat([low, low + 1 + 50 * torch.rand(9, 2, generator=generator)], 1)
    files = TrackFiles(tmp_path / "ours", layout)
    files.write("Jogging.1", boxes, [0.25] * 9)
    if layout == "otb":
        box_file = tmp_path / "ours" / "Jogging.1.txt"
        time_file = tmp_path / "ours" / "times" / "Jogging.1_time.txt"
    else:
        box_file = tmp_path / "ours" / "Jogging.1" / "Jogging.1_001.txt"
        time_file = tmp_path / "ours" / "Jogging.1" / "Jogging.1_time.txt"
    # The toolkit reads them by these very lines.
    table = np.loadtxt(box_file, delimiter=",")
    first = 1 if layout == "otb" else 0
    wanted = torch.cat([boxes[:, :2] + first, boxes[:, 2:] - boxes[:, :2]], 1).numpy()
    assert np.abs(table - wanted).max() <= 0.0005 + 1e-9
    assert np.loadtxt(time_file).tolist() == [0.25] * 9
    assert box_file.read_text().splitlines()[0].split(",")[0] == f"{float(boxes[0, 0]) + first:.3f}"
    assert (files.read("Jogging.1") - boxes).abs().max() <= 0.001 + 1e-9
    with pytest.raises(ValueError, match="Two: a box is NaN"):
        files.write("Two", boxes * torch.nan)
    with pytest.raises(ValueError, match="Two: 9 boxes and 3 times"):
        files.write("Two", boxes, [0.1] * 3)
    with pytest.raises(FileNotFoundError, match="Three"):
        files.read("Three")
    assert not list(tmp_path.glob("ours/**/Two*"))
