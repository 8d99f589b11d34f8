import errno
import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_vssl.evaluation.result import as_data, is_plain, write_json


@dataclass(frozen=True)
class Clips:
    frames: int = 16
    path: Path = Path("a/b")


def test_arguments_become_plain_data():
    value = {"clips": Clips(), "sizes": ((1, 2),), "module": nn.ReLU(), "nan": float("nan"), 3: SGD}
    data = as_data(value)
    assert data == {
        "clips": {"class": "Clips", "frames": 16, "path": "a/b"},
        "sizes": [[1, 2]],
        "module": {"class": "ReLU", "inplace": False},
        "nan": "nan",
        "3": "SGD",
    }
    assert json.loads(json.dumps(data)) == data


SGD = torch.optim.SGD


def test_plain_is_what_a_safe_checkpoint_may_hold():
    assert is_plain({"a": [1, (2.0, None)], "b": {"c": "d"}})
    assert not is_plain({"a": torch.float32})
    assert not is_plain([nn.ReLU()])
    assert not is_plain(Path("a"))


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "run" / "result.json"
    write_json(path, {"number": 1})

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*result.json: No space left") as caught:
        write_json(path, {"number": 2})
    assert caught.value.errno == errno.ENOSPC
    assert json.loads(path.read_text()) == {"number": 1}
    assert list(path.parent.iterdir()) == [path]
