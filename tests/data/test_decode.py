import io
import pickle
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from lightning_vssl.data import decode, packets
from lightning_vssl.data.decode import UnreadableVideo, VideoReader, probe

HEIGHT, WIDTH, FRAMES = 48, 64, 50


def drawn(frames=FRAMES, height=HEIGHT, width=WIDTH):
    """Smooth colours that move, with a block that moves against them."""
    y, x = np.mgrid[:height, :width]
    out = np.empty((frames, height, width, 3), np.uint8)
    for t in range(frames):
        out[t, ..., 0] = 127 + 90 * np.sin((x + 3 * t) / 11)
        out[t, ..., 1] = 127 + 90 * np.sin((y - 2 * t) / 9 + 1)
        out[t, ..., 2] = 127 + 90 * np.sin((x + y + t) / 17 + 2)
        left = (5 * t) % (width - 12)
        out[t, 10:22, left : left + 12] = 20 + 4 * (t % 50)
    return out


def encode(path, codec, options=None, *, layout=None, pixels="yuv420p", frames=None, ticks=None):
    """Encode drawn frames; `ticks` are times in milliseconds."""
    frames = drawn() if frames is None else frames
    with av.open(str(path), "w", format=layout) as container:
        add_stream(container, codec, options or {}, pixels, frames, ticks)
    return path


def add_stream(container, codec, options, pixels, frames, ticks=None):
    stream = container.add_stream(codec, rate=25, options={"threads": "1", **options})
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = pixels
    if ticks is not None:
        stream.codec_context.time_base = Fraction(1, 1000)
    for n, picture in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(picture)
        if ticks is not None:
            frame.pts, frame.time_base = ticks[n], Fraction(1, 1000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
    return stream


def sequential(path, stream=0):
    with av.open(str(path)) as container:
        container.streams.video[stream].codec_context.thread_count = 1
        return [f.to_ndarray(format="rgb24") for f in container.decode(video=stream)]


KINDS = {
    "b_frames_gop12.mp4": ("libx264", {"g": "12", "bf": "3"}, {}),
    "b_frames_one_gop.mp4": ("libx264", {"g": "250", "bf": "3"}, {}),
    "pyramid.mkv": ("libx264", {"g": "25", "bf": "5", "x264-params": "b-pyramid=normal"}, {}),
    "no_b.mp4": ("libx264", {"g": "12", "bf": "0"}, {}),
    "intra.mp4": ("libx264", {"g": "1"}, {}),
    "open_gop.mp4": (
        "libx264",
        {"g": "10", "bf": "3", "x264-params": "open-gop=1:scenecut=0:b-adapt=0"},
        {},
    ),
    "intra_refresh.mp4": ("libx264", {"g": "10", "bf": "0", "x264-params": "intra-refresh=1"}, {}),
    "full_chroma.mp4": ("libx264", {"g": "12"}, {"pixels": "yuv444p"}),
    "h264.ts": ("libx264", {"g": "12", "bf": "2"}, {}),
    "h264.flv": ("libx264", {"g": "12", "bf": "2"}, {}),
    "h264.avi": ("libx264", {"g": "12", "bf": "2"}, {}),
    "raw.h264": ("libx264", {"g": "12", "bf": "2"}, {"layout": "h264"}),
    "mpeg4.mp4": ("mpeg4", {"g": "12", "bf": "2"}, {}),
    "mpeg4.avi": ("mpeg4", {"g": "12", "bf": "0"}, {}),
    "mpeg4_b.avi": ("mpeg4", {"g": "12", "bf": "2"}, {}),
    "raw_named.mp4": ("mpeg4", {"g": "12", "bf": "0"}, {"layout": "m4v"}),
    "raw_b_named.mp4": ("mpeg4", {"g": "12", "bf": "2"}, {"layout": "m4v"}),
    "mpeg1.mpg": ("mpeg1video", {"g": "12", "bf": "2"}, {}),
    "mpeg2.mkv": ("mpeg2video", {"g": "12", "bf": "2"}, {}),
    "motion.avi": ("mjpeg", {}, {"pixels": "yuvj420p"}),
    "wmv.wmv": ("wmv2", {"g": "12"}, {}),
    "hidden.webm": ("libvpx", {"g": "20", "auto-alt-ref": "1", "lag-in-frames": "10"}, {}),
    "super.webm": ("libvpx-vp9", {"g": "20", "auto-alt-ref": "1", "lag-in-frames": "10"}, {}),
    "hevc.mp4": ("libx265", {"g": "12", "x265-params": "log-level=none:pools=1"}, {}),
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request, tmp_path_factory):
    """A file of each kind and its frames from a sequential decode."""
    codec, options, more = KINDS[request.param]
    path = tmp_path_factory.mktemp("kinds") / request.param
    encode(path, codec, options, **more)
    return path, np.stack(sequential(path))


def assert_clips_equal(video, truth, clips=6, seed=0):
    rng = np.random.default_rng(seed)
    for n in range(clips):
        start, stride = rng.integers(0, len(truth)), 1 + n % 4
        near = np.minimum(start + stride * np.arange(8), len(truth) - 1)
        far = rng.integers(0, len(truth), 8)
        got, used = video.read(np.stack([near, far]))
        np.testing.assert_array_equal(got[0], truth[near])
        np.testing.assert_array_equal(got[1], truth[far])
        np.testing.assert_array_equal(used, [[0, 0, WIDTH, HEIGHT]] * 2)


def test_equals_a_sequential_decode(kind):
    path, truth = kind
    with VideoReader(path) as video:
        assert video.info.frames == len(video.times) == len(truth)
        assert (video.info.width, video.info.height) == (WIDTH, HEIGHT)
        assert video.times[0] == 0
        assert (np.diff(video.times) > 0).all()
        assert_clips_equal(video, truth)
    assert probe(path, decode=True).frames == len(truth)


def test_files_too_large_to_keep_equal_it_too(kind, monkeypatch):
    path, truth = kind
    monkeypatch.setattr(packets, "KEEP_PACKETS", 0)
    monkeypatch.setattr(packets, "_SEEK_GAP", 5)
    monkeypatch.setattr(decode, "_KEEP_FRAMES", 0)
    source = VideoReader(path)._source
    if source._planned and source._format not in packets.UNTIMED:
        # Packets are found again by seeking, and not by decoding from the start.
        monkeypatch.setattr(decode._File, "_last_resort", None)
    with VideoReader(path) as video:
        assert_clips_equal(video, truth, seed=1)


@pytest.mark.parametrize("name", ["b_frames_gop12.mp4", "mpeg4_b.avi", "h264.flv", "motion.avi"])
def test_times_of_a_constant_rate(name, tmp_path):
    codec, options, more = KINDS[name]
    with VideoReader(encode(tmp_path / name, codec, options, **more)) as video:
        np.testing.assert_allclose(video.times, np.arange(FRAMES) / 25, atol=1e-3)
        assert video.info.fps == pytest.approx(25, abs=0.05)
        assert video.info.duration == pytest.approx(2, abs=0.05)


@pytest.mark.parametrize("name", ["vfr.mp4", "vfr.mkv"])
def test_times_of_a_variable_rate(name, tmp_path):
    gaps = np.random.default_rng(0).integers(15, 200, FRAMES)
    ticks = np.cumsum(gaps).tolist()
    path = encode(tmp_path / name, "libx264", {"bf": "3", "g": "12"}, ticks=ticks)
    with VideoReader(path) as video:
        np.testing.assert_allclose(video.times, (np.array(ticks) - ticks[0]) / 1000, atol=1e-3)
        assert_clips_equal(video, np.stack(sequential(path)))


def test_only_packets_that_are_needed_are_decoded(tmp_path):
    options = {"g": "12", "bf": "3", "x264-params": "b-adapt=0:scenecut=0"}
    path = encode(tmp_path / "gop12.mp4", "libx264", options)
    with VideoReader(path) as video:
        source = video._source
        fed = []
        feed = source._feed
        source._feed = lambda ordinals: (fed.append(n) or (n, e) for n, e in feed(ordinals))
        out = []
        inner = source._decode
        source._decode = lambda *args: (out.append(f) or f for f in inner(*args))
        video.read(np.array([[1, 2], [40, 47]]))
        assert not [n for n in fed if 12 <= n < 36]
        assert max(fed) < FRAMES - 1
        assert 4 <= len(out) < len(fed) < 4 + 12


def test_a_frame_two_clips_want_is_cut_once_for_each_window(tmp_path):
    path = encode(tmp_path / "a.mp4", "libx264")
    windows = np.array([[0, 0, 32, 24], [16, 8, 64, 48]])
    indices = np.array([[7, 3, 3, 11], [3, 11, 30, 7]])
    with VideoReader(path) as video:
        both, used = video.read(indices, windows=windows, size=(16, 20))
        np.testing.assert_array_equal(used, windows)
        for v in range(2):
            one, _ = video.read(indices[v : v + 1], windows=windows[v : v + 1], size=(16, 20))
            np.testing.assert_array_equal(both[v], one[0])
        np.testing.assert_array_equal(both[0, 1], both[0, 2])


FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def exact(frame, box, size, matrix, interpolation):
    """A window scaled plane by plane in floating point, then turned to RGB by the definition."""
    height, width = size
    planes = []
    for plane in frame.planes:
        rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
        values = np.ascontiguousarray(rows[:, : plane.width], dtype=np.float32)
        across, down = plane.width / frame.width, plane.height / frame.height
        part = (box[0] * across, box[1] * down, box[2] * across, box[3] * down)
        scaled = Image.fromarray(values).resize((width, height), FILTERS[interpolation], box=part)
        planes.append(np.asarray(scaled, dtype=np.float64))
    full = frame.color_range == 2
    luma = planes[0] if full else (planes[0] - 16) * 255 / 219
    blue, red = ((plane - 128) * (1 if full else 255 / 224) for plane in planes[1:])
    kr, kb = {"601": (0.299, 0.114), "709": (0.2126, 0.0722)}[matrix]
    out_red = luma + 2 * (1 - kr) * red
    out_blue = luma + 2 * (1 - kb) * blue
    green = (luma - kr * out_red - kb * out_blue) / (1 - kr - kb)
    return np.clip(np.stack([out_red, green, out_blue], axis=-1), 0, 255)


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "matrix"),
    [
        ("a.mp4", "libx264", "yuv420p", "601"),
        ("b.mp4", "libx264", "yuv444p", "601"),
        ("c.avi", "mjpeg", "yuvj420p", "601"),
        ("d.mp4", "libx264", "yuv420p", "709"),
    ],
)
@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("size", [(12, 16), (24, 20), (60, 90), (250, 300)])
def test_scaled_windows_match_floating_point(
    tmp_path, name, codec, pixels, matrix, size, interpolation
):
    path = tmp_path / name
    big = drawn(4, 192, 256)
    options = {"colorspace": "bt709"} if matrix == "709" else {}
    encode(path, codec, options, pixels=pixels, frames=big)
    windows = np.array([[17.0, 9.0, 201.0, 150.0], [0, 0, 256, 192]])
    with VideoReader(path) as video:
        got, used = video.read(
            np.array([[0, 2], [1, 3]]), windows=windows, size=size, interpolation=interpolation
        )
    np.testing.assert_allclose(used, windows, atol=1)
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    assert (frames[0].colorspace == 1) == (matrix == "709")
    for v, numbers in enumerate([(0, 2), (1, 3)]):
        for t, n in enumerate(numbers):
            gap = np.abs(got[v, t] - exact(frames[n], used[v], size, matrix, interpolation))
            # Where the filter reaches over the edge libav repeats the last pixel, Pillow
            # leaves out what is not there.
            assert gap[1:-1, 1:-1].mean() < 0.5
            assert gap[1:-1, 1:-1].max() < 4
            assert gap.max() < 20


def test_the_window_returned_is_the_window_cut(tmp_path):
    ramp = np.zeros((2, HEIGHT, WIDTH, 3), np.uint8)
    ramp[..., :] = (np.arange(WIDTH) * 3 + 20)[None, None, :, None]
    path = encode(tmp_path / "ramp.mp4", "libx264", {"crf": "1"}, frames=ramp)
    window = np.array([[9.3, 4.9, 41.2, 40.6]])
    with VideoReader(path) as video:
        got, used = video.read(np.array([[0]]), windows=window, size=(16, 16))
        np.testing.assert_array_equal(used, [[10, 4, 42, 40]])
        whole, exact = video.read(np.array([[0]]), windows=window)
        np.testing.assert_array_equal(exact, [[9, 5, 41, 41]])
        np.testing.assert_array_equal(whole[0, 0], sequential(path)[0][5:41, 9:41])
    centres = 10 + (np.arange(16) + 0.5) * 2 - 0.5
    np.testing.assert_allclose(got[0, 0, 8, 1:-1, 1], (centres * 3 + 20)[1:-1], atol=2.5)


@pytest.mark.parametrize("angle", [90, -90, 180])
def test_rotation_in_the_file_is_applied(tmp_path, angle):
    path = tmp_path / "turned.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"threads": "1", "crf": "4"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        stream.set_display_rotation(angle)
        for picture in drawn(6):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        stored = next(container.decode(video=0))
        assert stored.rotation in (angle, angle - 360, angle + 360)
    truth = np.rot90(np.stack(sequential(path)), angle // 90, axes=(1, 2))
    with VideoReader(path) as video:
        assert (video.info.height, video.info.width) == truth.shape[1:3]
        assert video.info.rotation == angle % 360
        whole, used = video.read(np.array([[5, 1, 0]]))
        np.testing.assert_array_equal(whole[0], truth[[5, 1, 0]])
        np.testing.assert_array_equal(used, [[0, 0, truth.shape[2], truth.shape[1]]])
        window = np.array([[6.0, 10.0, 36.0, 44.0]])
        cut, used = video.read(np.array([[2]]), windows=window)
        np.testing.assert_array_equal(cut[0, 0], truth[2, 10:44, 6:36])
        np.testing.assert_array_equal(used, window)
        small, used = video.read(np.array([[2]]), windows=window, size=(17, 15))
        np.testing.assert_array_equal(used, window)
        want = Image.fromarray(np.ascontiguousarray(truth[2])).resize(
            (15, 17), Image.Resampling.BILINEAR, box=(6, 10, 36, 44)
        )
        assert np.abs(small[0, 0].astype(float) - np.asarray(want, dtype=float)).mean() < 3


def test_an_edit_list_hides_frames(tmp_path):
    source = encode(tmp_path / "all.mp4", "libx264", {"g": "12", "bf": "3"})
    path = tmp_path / "later.mp4"
    # Packets moved to negative times: the container then says to begin later.
    with av.open(str(source)) as read, av.open(str(path), "w") as write:
        stream = read.streams.video[0]
        copy = write.add_stream_from_template(stream)
        for packet in read.demux(stream):
            if packet.size:
                packet.pts -= 10 * 512
                packet.dts -= 10 * 512
                packet.stream = copy
                write.mux(packet)
    truth = np.stack(sequential(path))
    with VideoReader(path) as video:
        assert len(truth) == video.info.frames
        assert_clips_equal(video, truth)
        assert video.times[0] == 0


def test_the_first_default_stream_is_read(tmp_path):
    path = tmp_path / "several.mkv"
    one, other = drawn(5), drawn(8)[:, :32, :40]
    with av.open(str(path), "w") as container:
        streams = []
        for frames in (one, other):
            stream = container.add_stream("libx264", rate=25, options={"threads": "1"})
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuv420p"
            streams.append(stream)
        streams[0].disposition = av.stream.Disposition.comment
        streams[1].disposition = av.stream.Disposition.default
        for stream, frames in zip(streams, (one, other), strict=True):
            for picture in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
            container.mux(stream.encode(None))
    with VideoReader(path) as video:
        assert video.info.stream == 1
        assert (video.info.frames, video.info.height, video.info.width) == (8, 32, 40)
        np.testing.assert_array_equal(
            video.read(np.arange(8)[None])[0][0], np.stack(sequential(path, 1))
        )


def test_a_raw_stream_takes_its_rate_from_fps(tmp_path):
    path = encode(tmp_path / "raw.mp4", "mpeg4", layout="m4v")
    with VideoReader(path, fps=10) as video:
        np.testing.assert_allclose(video.times, np.arange(FRAMES) / 10)
        assert video.info.fps == pytest.approx(10)
        assert video.info.duration == pytest.approx(FRAMES / 10)


def test_a_file_that_ends_early_reads_what_is_there(tmp_path):
    path = encode(tmp_path / "cut.mkv", "libx264", {"g": "12", "bf": "0"})
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    truth = np.stack(sequential(path))
    assert 10 < len(truth) < FRAMES
    with VideoReader(path) as video:
        assert video.info.frames == len(truth)
        assert_clips_equal(video, truth)


def test_a_file_that_breaks_in_the_middle_is_refused_by_frame(tmp_path):
    path = encode(tmp_path / "broken.mp4", "libx264", {"g": "10", "bf": "0"})
    with av.open(str(path)) as container:
        packet = [p for p in container.demux(video=0) if p.size][20]
        place, size = packet.pos, packet.size
    data = bytearray(path.read_bytes())
    data[place : place + size] = b"\xff" * size
    path.write_bytes(data)
    with VideoReader(path) as video:
        assert video.info.frames == FRAMES
        assert video.read(np.arange(10)[None])[0].shape == (1, 10, HEIGHT, WIDTH, 3)
        with pytest.raises(UnreadableVideo, match=r"broken\.mp4: frame 20 \(0\.800 s\)") as caught:
            video.read(np.array([[20]]))
        assert caught.value.path == str(path)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    with pytest.raises(UnreadableVideo, match="frame 20"):
        probe(path, decode=True)


def test_frames_the_plan_does_not_bring_come_from_a_sequential_decode(tmp_path, monkeypatch):
    codec, options, _ = KINDS["b_frames_gop12.mp4"]
    path = encode(tmp_path / "lost.mp4", codec, options)
    monkeypatch.setattr(decode._File, "_feed", lambda self, ordinals: iter(()))
    with VideoReader(path) as video:
        assert_clips_equal(video, np.stack(sequential(path)), clips=2)


def test_metadata_that_is_not_utf8_is_read(tmp_path):
    path = tmp_path / "latin.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "x" * 8
        add_stream(container, "libx264", {}, "yuv420p", drawn(3))
    path.write_bytes(path.read_bytes().replace(b"xxxxxxxx", b"caf\xe9 \xff\xfe!"))
    assert probe(path).frames == 3


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "no such file"), (b"", "empty"), (b"not a video at all" * 50, "cannot be opened")],
)
def test_what_is_not_a_video_is_refused(tmp_path, content, reason):
    path = tmp_path / "x.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UnreadableVideo, match=reason):
        VideoReader(path)


def test_a_file_of_sound_only_is_refused(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(UnreadableVideo, match="no video stream"):
        VideoReader(path)


def test_bad_arguments_are_named(tmp_path):
    path = encode(tmp_path / "a.mp4", "libx264", frames=drawn(5))
    with VideoReader(path) as video:
        with pytest.raises(IndexError, match=r"a\.mp4: frame 5 .* has 5 frames"):
            video.read(np.array([[0, 5]]))
        with pytest.raises(IndexError, match="frame -1"):
            video.read(np.array([[-1]]))
        with pytest.raises(ValueError, match="indices"):
            video.read(np.arange(3))
        with pytest.raises(ValueError, match="indices"):
            video.read(np.zeros((1, 2)))
        with pytest.raises(ValueError, match=r"windows must have shape \(1, 4\)"):
            video.read(np.array([[0]]), windows=np.zeros((2, 4)), size=(8, 8))
        for window in ([0, 0, 65, 40], [10, 0, 10, 40], [-1, 0, 10, 10], [np.nan, 0, 9, 9]):
            with pytest.raises(ValueError, match="inside the frame of 64 x 48"):
                video.read(np.array([[0]]), windows=np.array([window]), size=(8, 8))
        with pytest.raises(ValueError, match="different sizes"):
            video.read(np.zeros((2, 1), int), windows=np.array([[0, 0, 8, 8], [0, 0, 9, 8]]))
        with pytest.raises(ValueError, match="size must be"):
            video.read(np.array([[0]]), size=(0, 8))
    with pytest.raises(ValueError, match="fps"):
        VideoReader(path, fps=0)


def test_a_reader_may_be_pickled(tmp_path):
    path = encode(tmp_path / "a.mp4", "libx264")
    with VideoReader(path) as video, pickle.loads(pickle.dumps(video)) as copy:
        clip = np.array([[3, 9]])
        np.testing.assert_array_equal(video.read(clip)[0], copy.read(clip)[0])
        assert copy.info == video.info


# --- folders ------------------------------------------------------------------------------------


def folder_of(path, suffix, frames=12, height=HEIGHT, width=WIDTH):
    path.mkdir()
    for n, picture in enumerate(drawn(frames, height, width)):
        Image.fromarray(picture).save(path / f"frame{n}{suffix}", quality=95)
    return path


@pytest.mark.parametrize("suffix", [".png", ".JPG", ".webp", ".bmp"])
def test_a_folder_is_read_in_the_order_of_its_numbers(tmp_path, suffix):
    path = folder_of(tmp_path / "frames", suffix)
    (path / "notes.txt").write_text("not a frame")
    truth = [np.asarray(Image.open(path / f"frame{n}{suffix}").convert("RGB")) for n in range(12)]
    with VideoReader(path) as video:
        assert (video.info.frames, video.info.fps, video.info.codec) == (12, 25, suffix[1:].lower())
        np.testing.assert_allclose(video.times, np.arange(12) / 25)
        got, _ = video.read(np.array([[0, 2, 10], [11, 2, 1]]))
        np.testing.assert_array_equal(got[0], np.stack([truth[0], truth[2], truth[10]]))
        np.testing.assert_array_equal(got[1], np.stack([truth[11], truth[2], truth[1]]))
    assert probe(path, fps=10).duration == pytest.approx(1.2)


def test_a_folder_is_cut_at_fractions_of_a_pixel(tmp_path):
    path = folder_of(tmp_path / "frames", ".png", 2, 384, 512)
    window = np.array([[13.5, 20.25, 400.5, 300.75]])
    with VideoReader(path) as video:
        got, used = video.read(np.array([[1]]), windows=window, size=(30, 40))
    np.testing.assert_array_equal(used, window)
    image = Image.open(path / "frame1.png").convert("RGB")
    want = image.resize((40, 30), Image.Resampling.BILINEAR, box=tuple(window[0]))
    np.testing.assert_array_equal(got[0, 0], np.asarray(want))


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("kind", ["4:2:0", "4:4:4", "grey", "progressive"])
def test_jpeg_frames_are_cut_as_pillow_cuts_them(tmp_path, kind, interpolation):
    path = tmp_path / "frames"
    path.mkdir()
    how = {"subsampling": 0 if kind == "4:4:4" else 2, "progressive": kind == "progressive"}
    for n, pixels in enumerate(drawn(3, 99, 141)):
        picture = Image.fromarray(pixels).convert("L" if kind == "grey" else "RGB")
        picture.save(path / f"{n:05d}.jpg", quality=95, **how)
    windows = np.array([[13.0, 21.0, 100.4, 81.0], [0, 0, 141, 99]])
    with VideoReader(path) as video:
        got, used = video.read(
            np.array([[2, 0], [1, 1]]), windows=windows, size=(40, 50), interpolation=interpolation
        )
    assert np.abs(used - windows).max() <= 1
    for v, t, n in ((0, 0, 2), (0, 1, 0), (1, 0, 1)):
        image = Image.open(path / f"{n:05d}.jpg").convert("RGB")
        want = image.resize((50, 40), FILTERS[interpolation], box=tuple(used[v].tolist()))
        gap = got[v, t].astype(float) - np.asarray(want, dtype=float)
        assert np.abs(gap @ (0.299, 0.587, 0.114)).mean() < 1  # luma
        assert np.abs(gap).mean() < (3 if kind in ("4:2:0", "progressive") else 1)
        assert abs(gap.mean()) < 0.5  # and not darker


@pytest.mark.parametrize("kind", ["CMYK", "PNG"])
def test_frames_that_libav_does_not_read_come_from_pillow(tmp_path, kind):
    path = tmp_path / "frames"
    path.mkdir()
    picture = Image.fromarray(drawn(1, 96, 128)[0])
    if kind == "CMYK":
        inks = np.asarray(picture.convert("CMYK")).copy()
        inks[..., 3] = 120
        picture = Image.fromarray(inks, "CMYK")
    picture.save(path / "1.jpg", "PNG" if kind == "PNG" else "JPEG", quality=95)
    with VideoReader(path) as video:
        got, used = video.read(
            np.array([[0]]), windows=np.array([[10.0, 20, 100, 90]]), size=(30, 40)
        )
    image = Image.open(path / "1.jpg").convert("RGB")
    want = image.resize((40, 30), Image.Resampling.BILINEAR, box=tuple(used[0].tolist()))
    np.testing.assert_array_equal(got[0, 0], np.asarray(want))


def test_broken_jpeg_frames_are_refused_where_they_are_scaled(tmp_path):
    path = folder_of(tmp_path / "frames", ".jpg", 4, 96, 128)
    whole = (path / "frame1.jpg").read_bytes()
    (path / "frame1.jpg").write_bytes(whole[: len(whole) // 2])
    (path / "frame2.jpg").write_bytes(b"")
    Image.fromarray(drawn(1, 48, 64)[0]).save(path / "frame3.jpg")
    with VideoReader(path) as video:
        for number, reason in ((1, "does not decode"), (2, "does not decode"), (3, "64 x 48")):
            with pytest.raises(UnreadableVideo, match=rf"frame{number}\.jpg: .*{reason}"):
                video.read(np.array([[number]]), size=(20, 20))
        after = video.read(np.array([[0]]), size=(20, 20))[0]
    with VideoReader(path) as video:
        np.testing.assert_array_equal(after, video.read(np.array([[0]]), size=(20, 20))[0])


def test_bad_folders_are_refused(tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(UnreadableVideo, match="holds no frames"):
        VideoReader(tmp_path / "none")
    path = folder_of(tmp_path / "frames", ".jpg", 3)
    Image.fromarray(drawn(1, 20, 20)[0]).save(path / "frame1.jpg")
    (path / "frame2.jpg").write_bytes((path / "frame2.jpg").read_bytes()[:300])
    with VideoReader(path) as video:
        with pytest.raises(UnreadableVideo, match=r"frame1\.jpg: is 20 x 20 pixels"):
            video.read(np.array([[1]]))
        with pytest.raises(UnreadableVideo, match=r"frame2\.jpg: the frame does not decode"):
            video.read(np.array([[2]]))
    with pytest.raises(UnreadableVideo):
        probe(path, decode=True)
    image = io.BytesIO()
    Image.fromarray(drawn(1)[0]).save(image, "png")
    (tmp_path / "frames" / "frame0.jpg").write_bytes(image.getvalue()[:4])
    with pytest.raises(UnreadableVideo, match=r"frame0\.jpg"):
        VideoReader(path)


def test_a_folder_with_a_hole_in_its_numbers_is_refused(tmp_path):
    path = folder_of(tmp_path / "frames", ".jpg", 12)
    (path / "frame7.jpg").unlink()
    hole = r"frames: frames are missing: frame8\.jpg comes after frame6\.jpg, .* 1 apart"
    with pytest.raises(UnreadableVideo, match=hole):
        VideoReader(path)
    for odd in (1, 3, 5, 9, 11):
        (path / f"frame{odd}.jpg").unlink()
    assert probe(path).frames == 6  # every second one
    (path / "frame4.jpg").rename(path / "cover.jpg")
    assert probe(path).frames == 6  # names that do not count


# --- images -------------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", FILTERS)
def test_an_image_is_a_video_of_one_frame(tmp_path, interpolation):
    pixels = drawn(1, 96, 128)[0]
    path = tmp_path / "image.JPEG"
    Image.fromarray(pixels).save(path, "JPEG", quality=95)
    windows = np.array([[10.5, 20.25, 100.5, 90.75], [0, 0, 128, 96]])
    image = Image.open(path)
    with VideoReader(path) as video:
        assert (video.info.frames, video.info.width, video.info.height) == (1, 128, 96)
        assert video.times.tolist() == [0.0]
        got, used = video.read(
            np.zeros((2, 1), int), windows=windows, size=(64, 72), interpolation=interpolation
        )
        whole, _ = video.read(np.array([[0]]))
    np.testing.assert_array_equal(used, windows)
    np.testing.assert_array_equal(whole[0, 0], np.asarray(image))
    for v in range(2):
        want = image.resize((72, 64), FILTERS[interpolation], box=tuple(windows[v]))
        np.testing.assert_array_equal(got[v, 0], np.asarray(want))


def test_an_image_is_decoded_once_for_all_windows(tmp_path, monkeypatch):
    path = tmp_path / "image.jpg"
    Image.fromarray(drawn(1)[0]).save(path)
    decoded = []
    convert = Image.Image.convert
    monkeypatch.setattr(
        Image.Image, "convert", lambda self, mode: decoded.append(mode) or convert(self, mode)
    )
    with VideoReader(path) as video:
        video.read(np.zeros((4, 1), int), windows=np.tile([[0, 0, 30, 30]], (4, 1)), size=(20, 20))
    assert decoded == ["RGB"]


@pytest.mark.parametrize(("mode", "kind"), [("CMYK", "JPEG"), ("L", "JPEG"), ("P", "PNG")])
def test_images_of_other_modes_become_rgb(tmp_path, mode, kind):
    path = tmp_path / "image.JPEG"  # ImageNet has a PNG under this name
    image = Image.fromarray(drawn(1)[0]).convert(mode)
    image.save(path, kind)
    with VideoReader(path) as video:
        got, _ = video.read(np.array([[0]]))
    np.testing.assert_array_equal(got[0, 0], np.asarray(Image.open(path).convert("RGB")))


def test_bad_images_are_refused_by_name(tmp_path, monkeypatch):
    path = tmp_path / "cut.jpg"
    Image.fromarray(drawn(1, 200, 200)[0]).save(path, quality=95)
    path.write_bytes(path.read_bytes()[:3000])
    with VideoReader(path) as video, pytest.raises(UnreadableVideo, match=r"cut\.jpg: the frame"):
        video.read(np.array([[0]]))
    with pytest.raises(UnreadableVideo, match=r"cut\.jpg"):
        probe(path, decode=True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UnreadableVideo, match="decompression bomb"):
        VideoReader(path)
    (tmp_path / "empty.png").touch()
    for name in ("empty.png", "none.png"):
        with pytest.raises(UnreadableVideo, match=name):
            VideoReader(tmp_path / name)
