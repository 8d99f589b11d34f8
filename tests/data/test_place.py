"""Members of tar shards, opened where they lie: the same bits as files of their own."""

import copy
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from lightning_vssl.data import packets
from lightning_vssl.data.decode import UnreadableVideo, VideoReader, probe
from lightning_vssl.data.place import Place
from tests.videos import numbered_frames, write_video

FORMATS = [("libx264", ".mp4"), ("mpeg4", ".avi"), ("libx264", ".mkv")]


def packed(shard: Path, files: list[Path], **how: object) -> list[Place]:
    """A tar of these files, by the standard library, and where each lies in it."""
    with tarfile.open(shard, "w", **how) as archive:
        for number, file in enumerate(files):
            archive.add(file, f"{number:03d}{file.suffix}")
    with tarfile.open(shard) as archive:
        return [Place(shard, member.offset_data, member.size) for member in archive.getmembers()]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("files")
    return [
        write_video(folder / f"{codec}{suffix}", numbered_frames(30, seed=i), codec=codec)
        for i, (codec, suffix) in enumerate(FORMATS)
    ]


@pytest.fixture(scope="module")
def places(files: list[Path]) -> list[Place]:
    return packed(files[0].parent / "odd, name: %d.tar", files)


class TestTheSameBits:
    @pytest.mark.parametrize("kept", [True, False])
    def test_of_every_frame(self, files, places, kept, monkeypatch):
        """Large files are read again from the disk: from the place, not from the shard's start."""
        if not kept:
            monkeypatch.setattr(packets, "KEEP_PACKETS", 0)
        for file, place in zip(files, places, strict=True):
            with VideoReader(file) as one, VideoReader("name", place=place) as other:
                assert one.info == other.info
                assert np.array_equal(one.times, other.times)
                for clip in (np.arange(30)[None], np.array([[25, 3], [29, 0]])):
                    windows = np.tile([3.0, 5.0, 40.0, 44.0], (len(clip), 1))
                    for size, window in ((None, None), ((24, 24), windows)):
                        a, b = (r.read(clip, windows=window, size=size)[0] for r in (one, other))
                        assert np.array_equal(a, b)

    def test_of_a_copy_and_of_a_probe(self, files, places):
        assert probe("name", place=places[1], decode=True) == probe(files[1], decode=True)
        reader = VideoReader(files[1], place=places[1])
        truth = reader.read(np.array([[7]]))[0]
        for again in (copy.copy(reader), pickle.loads(pickle.dumps(reader))):
            assert np.array_equal(again.read(np.array([[7]]))[0], truth)
            assert again.place == places[1]

    def test_size_and_bytes(self, files, places):
        for file, place in zip(files, places, strict=True):
            assert place.stat()[0] == file.stat().st_size
            with place.open() as opened:
                assert opened.read(place.size) == file.read_bytes()

    def test_a_file_made_of_the_video(self, files):
        with VideoReader("name.avi", place=Place(files[0])) as reader:
            assert reader.info == probe(files[0])


class TestWhatIsWrong:
    def refused(self, place: Place, match: str) -> None:
        with pytest.raises(UnreadableVideo, match=match) as caught:
            VideoReader("clips/a.mp4", place=place)
        assert caught.value.path == "clips/a.mp4"

    def test_no_shard(self, tmp_path):
        self.refused(Place(tmp_path / "x.tar", 512, 9), r"no such file or folder .*x\.tar")

    def test_a_shard_cut_short(self, files, tmp_path):
        place = packed(tmp_path / "x.tar", files)[-1]
        content = place.file.read_bytes()
        place.file.write_bytes(content[: place.offset + place.size - 1])
        self.refused(place, rf"x\.tar ends at byte {place.offset + place.size - 1}.*copy the shard")

    def test_a_shard_packed_anew(self, files, tmp_path):
        """The first video of another size: its place holds a member of another length."""
        place = packed(tmp_path / "x.tar", files)[0]
        packed(tmp_path / "x.tar", files[::-1])
        self.refused(place, r"has \d+ bytes, not \d+ in .*x\.tar: it is not the shard")

    def test_a_place_between_members(self, files, tmp_path):
        place = packed(tmp_path / "x.tar", files)[0]
        wrong = Place(place.file, place.offset + 512, 1000)
        self.refused(wrong, f"no member begins at byte {wrong.offset}")

    def test_an_empty_file(self, tmp_path):
        (tmp_path / "a.mp4").touch()
        self.refused(Place(tmp_path / "a.mp4"), r"the file .*a\.mp4 is empty")


class TestStream:
    @pytest.mark.parametrize("number", range(len(FORMATS)))
    def test_is_what_read_gives(self, files, number):
        chosen = np.array([0, 1, 5, 12, 13, 29])
        window = (4.0, 2.0, 60.0, 46.0)
        with VideoReader(files[number]) as reader:
            truth = reader.read(chosen[None], windows=np.array([window]), size=(20, 24))[0][0]
            found = list(reader.stream(chosen, window=window, size=(20, 24)))
            assert np.array_equal(np.stack(found), truth)
            whole = np.stack(list(reader.stream(np.arange(30))))
            assert np.array_equal(whole, reader.read(np.arange(30)[None])[0][0])

    def test_frames_that_come_late_are_put_in_order(self, files, monkeypatch):
        with VideoReader(files[0]) as reader:
            truth = reader.read(np.arange(8)[None])[0][0]
            frames = reader._source.frames
            shuffled = [3, 0, 2, 1, 7, 6, 4, 5]
            monkeypatch.setattr(
                reader._source,
                "frames",
                lambda wanted: ((n, dict(frames(np.array([n])))[n]) for n in shuffled),
            )
            assert np.array_equal(np.stack(list(reader.stream(np.arange(8)))), truth)

    def test_refusals(self, files):
        with VideoReader(files[0]) as reader:
            with pytest.raises(ValueError, match="must increase"):
                next(reader.stream(np.array([3, 2])))
            with pytest.raises(IndexError, match="frame 30 was asked for"):
                next(reader.stream(np.array([30])))
