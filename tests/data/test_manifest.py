import errno
import logging
import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from lightning_vssl.data import manifest as module
from lightning_vssl.data.manifest import (
    Entry,
    Manifest,
    build_manifest,
    default_cache_dir,
    manifest_file,
    usable,
)
from tests.videos import numbered_frames, write_numbered, write_video

CLASSES = ("cut", "dive")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    write_numbered(folder / "a.mp4", 30)
    write_video(folder / "b [odd] & name.avi", numbered_frames(21, 32, 48), 30, "mpeg4")
    (folder / "broken.mp4").write_bytes(b"nothing" * 100)
    return folder


ENTRIES = [
    Entry("a.mp4", 1),
    Entry("b [odd] & name.avi", 0),
    Entry("broken.mp4", 0),
    Entry("gone.mp4", 1),
]


def rows(manifest: Manifest) -> str:
    return repr(manifest.table.to_pylist())  # as text, NaN equals NaN


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_found(root, tmp_path, workers):
    found = build_manifest(
        ENTRIES, root, CLASSES, cache_dir=tmp_path, workers=workers, progress=False
    )
    assert len(found) == 4
    assert found.classes == CLASSES
    assert found.column("frames").tolist() == [30, 21, 0, 0]
    assert found.column("width").tolist() == [64, 48, 0, 0]
    assert found.column("height").tolist() == [48, 32, 0, 0]
    assert found.column("fps")[:2] == pytest.approx([25, 30])
    assert found.column("duration")[:2] == pytest.approx([30 / 25, 21 / 30], abs=1e-3)
    assert found.column("size")[0] == (root / "a.mp4").stat().st_size
    assert found.readable.tolist() == [True, True, False, False]
    assert found.missing.tolist() == [False, False, False, True]
    assert found.table.column("reason")[3].as_py() == "missing"
    assert found.table.column("reason")[2].as_py()
    assert found.labels.tolist() == [1, 0, 0, 1]
    assert found.label(1) == 0
    assert found.path(1) == root / "b [odd] & name.avi"
    assert found.span(0) == (0.0, float("inf"))
    assert found.rate(0) is None


def test_built_once_and_only_changes_are_probed_again(root, tmp_path, monkeypatch):
    asked: list[str] = []
    probe = module.probe

    def counting(path, **kwargs):
        asked.append(Path(path).name)
        return probe(path, **kwargs)

    monkeypatch.setattr(module, "probe", counting)

    def build() -> Manifest:
        asked.clear()
        return build_manifest(ENTRIES, root, CLASSES, cache_dir=tmp_path, workers=0, progress=False)

    first = build()
    assert sorted(asked) == ["a.mp4", "b [odd] & name.avi", "broken.mp4"]
    again = build()
    assert asked == []
    assert rows(again) == rows(first)
    write_numbered(root / "gone.mp4", 12)
    os.utime(root / "a.mp4", ns=(1, 1))
    changed = build()
    assert sorted(asked) == ["a.mp4", "gone.mp4"]
    assert changed.column("frames").tolist() == [30, 21, 0, 12]
    build()
    assert asked == []


def test_the_data_may_be_read_only(root, tmp_path):
    root.chmod(0o555)
    try:
        build_manifest(ENTRIES, root, CLASSES, workers=0, progress=False)
    finally:
        root.chmod(0o755)
    assert list(default_cache_dir().glob("manifest-*.parquet"))
    assert sorted(path.name for path in root.iterdir()) == sorted(e.path for e in ENTRIES[:3])


def test_the_name_depends_on_all_that_was_asked(root, tmp_path):
    names = {
        manifest_file(ENTRIES, root, CLASSES),
        manifest_file(ENTRIES[:2], root, CLASSES),
        manifest_file(ENTRIES, root / "x", CLASSES),
        manifest_file(ENTRIES, root, ("a", "b")),
        manifest_file(ENTRIES, root, CLASSES, verify=True),
        manifest_file([Entry("a.mp4", 1, end=3.0), *ENTRIES[1:]], root, CLASSES),
    }
    assert len(names) == 6


def test_save_load_select_pickle(root, tmp_path):
    built = build_manifest(ENTRIES, root, CLASSES, cache_dir=tmp_path, workers=0, progress=False)
    file = manifest_file(ENTRIES, root, CLASSES, cache_dir=tmp_path)
    loaded = Manifest.load(file)
    assert rows(loaded) == rows(built)
    assert (loaded.root, loaded.classes) == (built.root, CLASSES)
    few = pickle.loads(pickle.dumps(loaded.select([1, 0])))
    assert few.path(0).name == "b [odd] & name.avi"
    assert few.labels.tolist() == [0, 1]
    assert list(tmp_path.glob("*.tmp")) == []


def test_a_spoilt_cache_is_built_anew(root, tmp_path, caplog):
    file = manifest_file(ENTRIES, root, CLASSES, cache_dir=tmp_path)
    for content in (b"", b"PAR1 no more"):
        file.write_bytes(content)
        with caplog.at_level(logging.WARNING):
            built = build_manifest(
                ENTRIES, root, CLASSES, cache_dir=tmp_path, workers=0, progress=False
            )
        assert built.readable.sum() == 2
        assert str(file) in caplog.text
        assert len(Manifest.load(file)) == 4


def test_a_full_disk_leaves_nothing_and_says_what_to_do(root, tmp_path, monkeypatch):
    def full(table, sink):
        sink.write(b"PAR1")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    cache = tmp_path / "cache"
    with pytest.raises(OSError, match=r"No space left on device.*set cache_dir.*manifest-"):
        build_manifest(ENTRIES, root, CLASSES, cache_dir=cache, workers=0, progress=False)
    assert list(cache.iterdir()) == []


def test_a_file_that_kills_its_reader_is_found_out(tmp_path, monkeypatch):
    probe = module.probe

    def deadly(path, **kwargs):
        if "killer" in str(path):
            os._exit(9)
        return probe(path, **kwargs)

    monkeypatch.setattr(module, "probe", deadly)
    source = write_numbered(tmp_path / "0.mp4", 8)
    names = [f"{i}.mp4" for i in range(12)]
    names[5] = "killer.mp4"
    for name in names[1:]:
        (tmp_path / name).write_bytes(source.read_bytes())
    found = build_manifest(
        [Entry(name) for name in names], tmp_path, cache_dir=tmp_path, workers=2, progress=False
    )
    assert np.flatnonzero(~found.readable).tolist() == [5]
    assert found.table.column("reason")[5].as_py() == "reading it kills the process"
    assert found.column("frames").tolist() == [8] * 5 + [0] + [8] * 6


def test_verify_finds_a_break_in_the_middle(tmp_path):
    file = write_numbered(tmp_path / "a.mp4", 60)
    content = bytearray(file.read_bytes())
    start = content.index(b"mdat") + len(content) // 3
    content[start : start + 600] = bytes(600)
    file.write_bytes(content)
    entries = [Entry("a.mp4")]
    quick = build_manifest(entries, tmp_path, cache_dir=tmp_path, workers=0, progress=False)
    full = build_manifest(
        entries, tmp_path, cache_dir=tmp_path, workers=0, progress=False, verify=True
    )
    assert quick.readable.tolist() == [True]
    assert full.readable.tolist() == [False]


def test_no_entries(tmp_path):
    with pytest.raises(ValueError, match="no videos listed for"):
        build_manifest([], tmp_path)


@pytest.mark.parametrize("label", [2, -2])
def test_a_label_without_a_class(tmp_path, label):
    with pytest.raises(ValueError, match=rf"label {label} of x.mp4 has no class"):
        build_manifest([Entry("x.mp4", label)], tmp_path, CLASSES)


def test_no_manifest_yet(tmp_path):
    with pytest.raises(FileNotFoundError, match="prepare_data"):
        Manifest.load(tmp_path / "none.parquet")


def many(tmp_path: Path, *, missing: int = 0, broken: int = 0, good: int = 0) -> Manifest:
    names = []
    source = write_numbered(tmp_path / "good-000.mp4", 4).read_bytes()
    for count, kind, content in (
        (missing, "gone", None),
        (broken, "bad", b"x"),
        (good, "good", source),
    ):
        for i in range(count):
            names.append(f"{kind}-{i:03d}.mp4")
            if content is not None:
                (tmp_path / names[-1]).write_bytes(content)
    entries = [Entry(name) for name in names]
    return build_manifest(entries, tmp_path, cache_dir=tmp_path, workers=0, progress=False)


def test_missing_files_are_counted_and_ten_are_named(tmp_path, caplog):
    found = many(tmp_path, missing=12, good=48)
    with caplog.at_level(logging.WARNING):
        left = usable(found, name="training")
    assert len(left) == 48
    assert len(caplog.records) == 1
    text = caplog.text
    assert "12 of 60 training videos are missing" in text
    assert "gone-009.mp4" in text
    assert "gone-010.mp4" not in text
    assert "and 2 more" in text
    with pytest.raises(FileNotFoundError, match=r"12 of 60 .*(\n.*)*max_missing=0.1"):
        usable(found, name="training", max_missing=0.1)


def test_all_files_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="3 of 3 test videos are missing"):
        usable(many(tmp_path, missing=3), name="test", max_missing=1.0)


def test_broken_files(tmp_path, caplog):
    found = many(tmp_path, broken=1, good=20)
    with caplog.at_level(logging.WARNING):
        assert len(usable(found, name="training")) == 20
    assert "1 of 21 training videos cannot be read:\n  bad-000.mp4: " in caplog.text
    caplog.clear()
    assert len(usable(found, name="training", warn=False)) == 20
    assert not caplog.records
    with pytest.raises(ValueError, match=r"bad-000.mp4(.*\n)*.*max_unreadable=0.01"):
        usable(found, name="training", max_unreadable=0.01)
