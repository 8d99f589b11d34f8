"""Files of AVA's format: what is read, and what is said of rows that cannot be."""

from pathlib import Path

import numpy as np
import pytest

from lightning_vssl.metrics.action_rows import (
    EVALUATED,
    frame_numbers,
    read_action_rows,
    read_frames,
    read_label_map,
    stack_rows,
)


def written(folder: Path, text: str, name: str = "rows.csv") -> Path:
    file = folder / name
    file.write_bytes(text.encode())
    return file


def test_rows_of_two_seven_and_eight_columns_keep_their_order(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "b,0902,0.1,0.2,0.3,0.4,12,1\r\na,12.345678\r\n\r\na,0904,0.5,0.2,1.0,0.4,80\n"
        "b, 903 ,0,0,1,1,,0.75",
    )
    rows = read_action_rows(file)
    assert rows.videos == ("b", "a")
    assert rows.video.tolist() == [0, 1, 1, 0]
    assert rows.second.tolist() == [902, 12.345678, 904, 903]
    assert rows.box[[0, 2, 3]].tolist() == [[0.1, 0.2, 0.3, 0.4], [0.5, 0.2, 1, 0.4], [0, 0, 1, 1]]
    assert rows.boxed.tolist() == [True, False, True, True]
    assert rows.action.tolist() == [12, 0, 80, 0]
    assert rows.score.tolist() == [1, 1, 1, 0.75]
    assert rows.line.tolist() == [1, 2, 4, 5]
    assert rows.where(2) == f"{file}, line 4"
    assert read_frames(written(tmp_path, "", "none.csv")).videos == ()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a,902,0.1,0.2,0.3,0.4", "6 columns in 'a,902,0.1,0.2,0.3,0.4'"),
        ("a,902,0.1,0.2,0.3,0.4,1,0,9", "9 columns"),
        ("a,902,0.1,0.2,0.3,0.4,1,3_", "the last column is '3_'"),
        ("a,902,0.1,nan,0.3,0.4,1,3", "y1 is 'nan'"),
        ("a,nine,0.1,0.2,0.3,0.4,1", "second is 'nine'"),
        ("a,902,0.1,0.2,,0.4,1", "x2 is ''"),
        ("a,902,0.1,0.2,inf,0.4,1", "x2 is 'inf'"),
        ("a,902,0.1,0.2,0.3,0.4,0", "action is '0'"),
        ("a,902,0.1,0.2,0.3,0.4,1.5", "action is '1.5'"),
        ("video_id,timestamp,x1,y1,x2,y2,action_id,person_id", "is 'x1'"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, line: str, said: str) -> None:
    file = written(tmp_path, f"a,902\na,903,0,0,1,1,1,0.5\n{line}\na,904,0,0,1,1,1\n")
    with pytest.raises(ValueError, match="line 3") as raised:
        read_action_rows(file)
    assert str(file) in str(raised.value)
    assert said in str(raised.value)


def test_missing_files_and_lists_with_boxes(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        read_action_rows(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="line 2: a box in a list of frames"):
        read_frames(written(tmp_path, "a,902\na,903,0,0,1,1,1\n"))


def test_frames_are_known_to_the_microsecond(tmp_path: Path) -> None:
    first = read_action_rows(written(tmp_path, "a,1.0000004\na,1.000002\nb,1\n", "1.csv"))
    second = read_action_rows(written(tmp_path, "b,1.0\na,01\na,2\n", "2.csv"))
    one, two = frame_numbers(first, second)
    assert one.tolist() == [0, 1, 3]
    assert two.tolist() == [3, 0, 2]
    joined = stack_rows([second, first])
    assert joined.videos == ("b", "a")
    assert [joined.videos[v] for v in joined.video] == ["b", "a", "a", "a", "a", "b"]
    assert np.array_equal(joined.second, np.append(second.second, first.second))


def test_label_maps_of_both_kinds(tmp_path: Path) -> None:
    text = (
        'label {\n  name: "sit (on a chair)"\n  label_id: 11\n  label_type: PERSON_MOVEMENT\n}\n'
        'item { id: 12 name: "stand" }item {\n  name: "x"\n  id: 3\n}\n'
    )
    found = read_label_map(written(tmp_path, text, "map.pbtxt"))
    assert found == {11: "sit (on a chair)", 12: "stand", 3: "x"}
    assert list(found) == [11, 12, 3]
    assert len(EVALUATED) == 60
    assert {2, 16, 71, 75}.isdisjoint(EVALUATED)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1: sit\n2: stand\n", "is no label map"),
        ('item {\n name: "a"\n}\n', "line 1: a block without"),
        ('item { name: "a" id: 1 }\nitem { name: "b" id: 1 }', "line 2: number 1 stands there"),
    ],
)
def test_a_bad_label_map_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_label_map(written(tmp_path, text, "map.pbtxt"))
