"""What stands in for a file that cannot be read, and when there are too many of them."""

import logging
import pickle

import pytest

from lightning_vssl.data.unreadable import (
    TooManyUnreadable,
    Unreadable,
    UnreadableFile,
    stand_ins,
)

NAMES = [f"n{number:02d}" for number in range(30)]


def test_stand_ins_are_the_row_and_then_every_other_in_an_order_of_the_key():
    orders = [list(stand_ins(7, 30, key)) for key in (3, 3, -4)]
    for order in orders:
        assert order[0] == 7
        assert sorted(order) == list(range(30))
    assert orders[0] == orders[1] != orders[2]
    assert len({list(stand_ins(0, 2000, key))[1] for key in range(50)}) > 40
    assert list(stand_ins(0, 1, 5)) == [0]


def test_each_is_logged_once_by_its_file_and_counted(caplog):
    broken = Unreadable(NAMES.__getitem__, 30, limit=0.1)
    with caplog.at_level(logging.WARNING):
        for number in (4, 9, 4):
            broken.note(number, UnreadableFile(f"{number}.mp4", "it is cut off"))
    assert broken.numbers.tolist() == [4, 9]
    assert [record.getMessage().split(";")[0] for record in caplog.records] == [
        "cannot read 4.mp4: it is cut off",
        "cannot read 9.mp4: it is cut off",
    ]


def test_above_the_limit_the_first_ten_are_named():
    broken = Unreadable(NAMES.__getitem__, 30, limit=0.5, what="sequences")
    for number in range(15):
        broken.note(number, UnreadableFile("x", "y"))
    with pytest.raises(TooManyUnreadable) as caught:
        broken.note(29, UnreadableFile("n29/3.jpg", "it is empty"))
    assert str(caught.value).splitlines() == [
        "16 of 30 sequences could not be read:",
        *(f"  n{number:02d}" for number in range(10)),
        "  and 6 more",
        "The last failure: n29/3.jpg: it is empty",
        "More than max_unreadable=0.5 allows: repair or remove these files, or raise it.",
    ]


def test_all_of_them_are_too_many_whatever_the_limit():
    broken = Unreadable(NAMES.__getitem__, 2, limit=1.0)
    broken.note(0, UnreadableFile("x", "y"))
    with pytest.raises(TooManyUnreadable, match="2 of 2"):
        broken.note(1, UnreadableFile("x", "y"))


def test_a_wrong_limit():
    with pytest.raises(ValueError, match="max_unreadable=-1: a share of the frames"):
        Unreadable(str, 3, limit=-1, what="frames")


def test_the_error_crosses_a_pipe():
    error = pickle.loads(pickle.dumps(UnreadableFile("a.mp4", "why")))
    assert (error.path, error.reason, str(error)) == ("a.mp4", "why", "a.mp4: why")
