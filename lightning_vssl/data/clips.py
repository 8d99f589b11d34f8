"""Which frames of a video make its clips.

A sampler is a small frozen dataclass. ``sample(times, rng)`` takes the presentation times of the
video's frames, (N,) in seconds, and returns frame indices, (V, T) int64: V clips of T frames. It
draws from ``rng`` alone, so the same key gives the same clips, and draws the same count of numbers
whatever the video wherever that is possible.

Unless ``fps`` is given, frames are counted as they are stored. With ``fps`` the video is first
resampled: the frame shown at each tick of that rate.
"""

import math
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Short = Literal["clamp", "loop", "error"]
"""What to do where a clip is longer than its video: repeat the last frame, start over from the
first frame, or raise ValueError."""

Distance = Literal["varying", "constant", "zero", "curriculum"]
"""How far apart in time two clips start; see `TrackedClips`."""

ALWAYS = sys.maxsize
"""An epoch after any curriculum."""


class Clips(ABC):
    """Chooses the frames of V clips of T frames. Concrete samplers are the dataclasses below."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(V, T): clips per sample, frames per clip."""

    @abstractmethod
    def sample(self, times: Times, rng: np.random.Generator) -> Indices:
        """Chooses frames.

        Args:
            times: Presentation times, (N,) seconds, increasing.
            rng: The source of every draw.

        Returns:
            Frame indices in [0, N), (V, T).

        Raises:
            ValueError: If the video is shorter than a clip and ``short`` is ``error``.
        """


@dataclass(frozen=True)
class RandomClip(Clips):
    """Clips of evenly spaced frames, each from a uniform start.

    Args:
        frames: Frames of a clip.
        stride: Stored frames, or ticks of ``fps``, from one frame of a clip to the next.
        clips: Clips per sample, drawn independently. RSPNet and PreViTS draw query and key so.
        fps: Rate to resample the video to first; None to take frames as stored.
        short: What to do where the clip is longer than its video.
    """

    frames: int = 16
    stride: int = 1
    clips: int = 1
    fps: float | None = None
    short: Short = "loop"

    def __post_init__(self) -> None:
        _positive(frames=self.frames, stride=self.stride, clips=self.clips, fps=self.fps)

    @property
    def shape(self) -> tuple[int, int]:
        """(V, T)."""
        return self.clips, self.frames

    def sample(self, times: Times, rng: np.random.Generator) -> Indices:
        """Chooses frames; see `Clips.sample`."""
        grid = _grid(times, self.fps)
        room = len(grid) - _span(self.frames, self.stride)
        starts = np.floor(rng.random(self.clips) * (max(room, 0) + 1)).astype(np.int64)  # (V,)
        indices = starts[:, None] + self.stride * np.arange(self.frames)  # (V, T)
        return grid[_fit(indices, len(grid), self.short)]


@dataclass(frozen=True)
class KeyFrameClip(Clips):
    """A clip around a key frame, which stands at number ``frames // 2``; nothing is drawn.

    Args:
        frames: Frames of a clip. ConST-CL on AVA (section 4.2): 32.
        stride: Stored frames, or ticks of ``fps``, from one frame to the next. ConST-CL: 2.
        fps: Rate to resample the video to first; None for frames as stored. AVA's frames are
            usually taken at 30.
    """

    frames: int = 32
    stride: int = 2
    fps: float | None = 30.0

    def __post_init__(self) -> None:
        _positive(frames=self.frames, stride=self.stride, fps=self.fps)

    @property
    def shape(self) -> tuple[int, int]:
        """(V, T)."""
        return 1, self.frames

    def around(self, times: Times, second: float) -> Indices:
        """The frames around a moment; the video's first and last stand for those beyond it.

        Args:
            times: Presentation times, (N,) seconds, increasing.
            second: When the key frame is shown.

        Returns:
            Frame indices in [0, N), (1, T).
        """
        offset = (np.arange(self.frames) - self.frames // 2) * self.stride
        if self.fps is not None:
            return _shown(times, second + offset / self.fps)[None]
        key = _shown(times, np.array([second]))
        frames: Indices = np.clip(key + offset, 0, len(times) - 1)  # (T,)
        return frames[None]

    def sample(self, times: Times, rng: np.random.Generator) -> Indices:
        """The frames around the middle of the video; see `Clips.sample`."""
        return self.around(times, sum(_stretch(times)) / 2)


@dataclass(frozen=True)
class JitteredClip(Clips):
    """CtP's clip (section 3.4 of the supplement's code, configs of UCF-101 and Kinetics).

    One stride is drawn for the clip; each frame moves forward by an offset uniform over
    ``0 .. stride - 1``; the start is uniform over those that keep ``frames * stride`` frames
    inside the video.

    Args:
        frames: Frames of a clip.
        strides: Strides to draw from, uniformly.
        clips: Clips per sample, drawn independently.
        short: What to do where the clip is longer than its video; CtP repeats the last frame.
    """

    frames: int = 16
    strides: tuple[int, ...] = (1, 2, 3, 4, 5)
    clips: int = 1
    short: Short = "clamp"

    def __post_init__(self) -> None:
        _positive(frames=self.frames, clips=self.clips)
        if not self.strides or min(self.strides) < 1:
            raise ValueError(f"strides={self.strides}: at least one, each 1 or more")

    @property
    def shape(self) -> tuple[int, int]:
        """(V, T)."""
        return self.clips, self.frames

    def sample(self, times: Times, rng: np.random.Generator) -> Indices:
        """Chooses frames; see `Clips.sample`."""
        strides = np.asarray(self.strides)[rng.integers(len(self.strides), size=self.clips)]  # (V,)
        room = np.maximum(len(times) - self.frames * strides, 0)
        starts = np.floor(rng.random(self.clips) * (room + 1)).astype(np.int64)
        jitter = np.floor(rng.random((self.clips, self.frames)) * strides[:, None]).astype(np.int64)
        indices = starts[:, None] + strides[:, None] * np.arange(self.frames) + jitter  # (V, T)
        return _fit(indices, len(times), self.short)


@dataclass(frozen=True)
class UniformClips(Clips):
    """Clips spread evenly over the video, without a draw: the papers' tests.

    Args:
        frames: Frames of a clip.
        stride: Stored frames, or ticks of ``fps``, from one frame of a clip to the next.
        clips: Clips per video.
        placement: Where the clips start, N being the frames of the video and L those that a clip
            covers from its first to its last:

            * ``tick`` (CtP): ``int(tick / 2 + tick * i)``, ``tick = (N - frames * stride + 1) /
              clips``.
            * ``centres`` (VCOP): centres at ``linspace(h, N - h, clips)``, rounded down, minus
              ``h``, half of ``frames * stride``.
            * ``rounded`` (RSPNet, PreViTS): ``linspace(0, N - L, clips)`` to the nearest, ties to
              the even number. One clip stands in the middle. A video of fewer frames than the
              clip has starts over; one too short for the stride alone has the stride shrunk.
            * ``linspace`` (AVID, VITO; CVRL, ConST-CL): ``linspace(0, N - frames * stride,
              clips)`` rounded down. A short video gives the same clip each time.
        fps: Rate to resample the video to first (PreViTS 25, VITO 12); None for frames as stored.
        short: What to do where the clip is longer than its video.
    """

    frames: int = 16
    stride: int = 2
    clips: int = 10
    placement: Literal["tick", "centres", "rounded", "linspace"] = "tick"
    fps: float | None = None
    short: Short = "clamp"

    def __post_init__(self) -> None:
        _positive(frames=self.frames, stride=self.stride, clips=self.clips, fps=self.fps)
        if self.placement not in ("tick", "centres", "rounded", "linspace"):
            raise ValueError(
                f"placement={self.placement!r}: choose tick, centres, rounded or linspace"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(V, T)."""
        return self.clips, self.frames

    def sample(self, times: Times, rng: np.random.Generator) -> Indices:
        """Chooses frames; see `Clips.sample`. Nothing is drawn."""
        grid = _grid(times, self.fps)
        count = len(grid)
        if self.placement == "rounded" and self.frames < count < _span(self.frames, self.stride):
            _refuse(self.short, _span(self.frames, self.stride), count)
            shrunk = np.round(np.linspace(0, count - 1, self.frames)).astype(np.int64)  # (T,)
            return grid[np.tile(shrunk, (self.clips, 1))]
        stride = 1 if self.placement == "rounded" and count <= self.frames else self.stride
        indices = self._starts(count)[:, None] + stride * np.arange(self.frames)  # (V, T)
        return grid[_fit(indices, count, self.short)]

    def _starts(self, count: int) -> Indices:
        """First frames of the clips in a video of ``count`` frames, (V,)."""
        covered = self.frames * self.stride
        order = np.arange(self.clips)
        if self.placement == "tick":
            tick = max(count - covered + 1, 0) / self.clips
            starts: npt.NDArray[np.float64] = np.floor(tick / 2 + tick * order)
            return starts.astype(np.int64)
        if self.placement == "centres":
            half = covered // 2
            last = max(count - (covered - half), half)
            return np.linspace(half, last, self.clips).astype(np.int64) - half
        if self.placement == "rounded":
            room = max(count - _span(self.frames, self.stride), 0)
            if self.clips == 1:
                return np.array([room // 2])
            return np.round(np.linspace(0, room, self.clips)).astype(np.int64)
        return np.linspace(0, max(count - covered, 0), self.clips).astype(np.int64)


@dataclass(frozen=True)
class CentreClip(Clips):
    """The clip in the middle of the video, without a draw.

    Args:
        frames: Frames of the clip.
        stride: Stored frames, or ticks of ``fps``, from one frame of the clip to the next.
        fps: Rate to resample the video to first; None for frames as stored.
        short: What to do where the clip is longer than its video.
    """

    frames: int = 16
    stride: int = 2
    fps: float | None = None
    short: Short = "clamp"

    def __post_init__(self) -> None:
        _positive(frames=self.frames, stride=self.stride, fps=self.fps)

    @property
    def shape(self) -> tuple[int, int]:
        """(V, T): one clip."""
        return 1, self.frames

    def sample(self, times: Times, rng: np.random.Generator) -> Indices:
        """Chooses frames; see `Clips.sample`. Nothing is drawn."""
        grid = _grid(times, self.fps)
        start = max(len(grid) - _span(self.frames, self.stride), 0) // 2
        indices = start + self.stride * np.arange(self.frames)[None]  # (1, T)
        return grid[_fit(indices, len(grid), self.short)]


@dataclass(frozen=True)
class ClipPair(Clips):
    """CVRL's and ConST-CL's two clips: near ones more often than far ones.

    With M the count of possible starts, the gap between the two starts is drawn from the density
    ``p(d) = (2 / M) (1 - d / M)`` on [0, M) (CVRL section 3.2) and rounded down, the earlier start
    is uniform over those that leave room for the gap, and which of the two comes first is a coin.

    Args:
        frames: Frames of a clip.
        stride: Stored frames from one frame of a clip to the next.
        short: What to do where a clip is longer than its video. ``loop``, as in the papers' code,
            draws two independent starts anywhere in the video and goes round its end.
    """

    frames: int = 16
    stride: int = 2
    short: Short = "loop"

    def __post_init__(self) -> None:
        _positive(frames=self.frames, stride=self.stride)

    @property
    def shape(self) -> tuple[int, int]:
        """(V, T): two clips."""
        return 2, self.frames

    def sample(self, times: Times, rng: np.random.Generator) -> Indices:
        """Chooses frames; see `Clips.sample`."""
        count = len(times)
        room = count - _span(self.frames, self.stride) + 1  # M
        u_gap, u_start, u_order = rng.random(3)
        if room >= 1:
            gap = min(int(room * (1 - math.sqrt(1 - u_gap))), room - 1)
            start = int(u_start * (room - gap))
            pair = (start, start + gap) if u_order < 0.5 else (start + gap, start)
        else:
            pair = (int(u_gap * count), int(u_start * count)) if self.short == "loop" else (0, 0)
        indices = np.array(pair)[:, None] + self.stride * np.arange(self.frames)  # (2, T)
        return _fit(indices, count, self.short)


@dataclass(frozen=True)
class SpeedClips(Clips):
    """RSPNet's three clips at two speeds; PreViTS takes the same.

    Two windows of ``frames * max(speeds)`` consecutive frames are drawn independently, one for
    the query and one for the key. View 0 is the query and view 1 the key, both played at one
    speed; view 2 is the key's window from its first frame at the other speed. The speed of views
    0 and 1 is a fair coin per sample. Which speed a view has follows from the batch's ``time``.

    Args:
        frames: Frames of a clip.
        speeds: The two speeds: every how many stored frames one is taken.
        short: What to do where a window is longer than its video; RSPNet starts over.
    """

    frames: int = 16
    speeds: tuple[int, int] = (1, 2)
    short: Short = "loop"

    def __post_init__(self) -> None:
        _positive(frames=self.frames)
        if len(self.speeds) != 2 or min(self.speeds) < 1 or self.speeds[0] == self.speeds[1]:
            raise ValueError(f"speeds={self.speeds}: two different ones, each 1 or more")
        if self.frames < 2:
            raise ValueError(
                f"frames={self.frames}: a clip needs 2 frames or more to have one of the speeds "
                f"{self.speeds}"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(V, T): query, key, key at the other speed."""
        return 3, self.frames

    def sample(self, times: Times, rng: np.random.Generator) -> Indices:
        """Chooses frames; see `Clips.sample`."""
        room = max(len(times) - self.frames * max(self.speeds), 0)
        draws = rng.random(3)
        query, key = np.floor(draws[:2] * (room + 1)).astype(np.int64)
        speed, other = self.speeds if draws[2] < 0.5 else self.speeds[::-1]
        starts = np.array([query, key, key])
        steps = np.array([speed, speed, other])
        indices = starts[:, None] + steps[:, None] * np.arange(self.frames)  # (3, T)
        return _fit(indices, len(times), self.short)


@dataclass(frozen=True)
class FrameViews(Clips):
    """VITO's views: single frames out of one stretch of the video (section 3.1, Figure B.3).

    The stretch starts at a time uniform over those that keep it inside the video; a shorter video
    is taken whole.

    Args:
        views: Frames per sample, each a clip of length one. VITO 3, MoCLR on video 2.
        seconds: Length of the stretch, T.
        spacing: How the frames' times are drawn in the stretch. ``marginal``: each uniform, on its
            own. ``delta``: fixed distances, the first frame at the stretch's start and the last
            at its end. ``uniform``: one uniform time in each of ``views`` equal parts. ``same``:
            one uniform time for all views, MoCLR's on video (Table B.1).
    """

    views: int = 3
    seconds: float = 2.56
    spacing: Literal["marginal", "delta", "uniform", "same"] = "marginal"

    def __post_init__(self) -> None:
        _positive(views=self.views, seconds=self.seconds)
        if self.spacing not in ("marginal", "delta", "uniform", "same"):
            raise ValueError(f"spacing={self.spacing!r}: choose marginal, delta, uniform or same")

    @property
    def shape(self) -> tuple[int, int]:
        """(V, T): single frames."""
        return self.views, 1

    def sample(self, times: Times, rng: np.random.Generator) -> Indices:
        """Chooses frames; see `Clips.sample`."""
        first, end = _stretch(times)
        length = min(self.seconds, end - first)
        start = first + rng.random() * (end - first - length)
        draws = rng.random(self.views)
        order = np.arange(self.views)
        if self.spacing == "delta":
            parts = order / max(self.views - 1, 1)
        elif self.spacing == "same":
            parts = np.repeat(draws[:1], self.views)
        else:
            parts = draws if self.spacing == "marginal" else (order + draws) / self.views
        return _shown(times, start + parts * length)[:, None]  # (V, 1)


@dataclass(frozen=True, kw_only=True)
class TrackedClips(Clips):
    """Clips in which the object of the video is seen (PreViTS section 3.2).

    A query and a key window are drawn uniformly from all pairs of windows that lie in the video's
    tube and are as far apart as ``distance`` asks. That is the law of drawing two windows
    anywhere until both are in the tube, without the tries (the authors' code gives up after 100).
    Where the object is seen in fewer than ``min_tracked`` frames, or no pair fits, both windows
    are drawn anywhere, and the sample is not one of the tube; so they are without tubes.

    Args:
        distance: Distance from the start of the query to that of the key, before or after it
            (PreViTS section 4.6 and Table 7a): ``varying``, any; ``constant``, ``gap``; ``zero``,
            none: both show the same frames; ``curriculum``, at most a share of the longest there
            is in the video, ``(epoch + 1) / relax``, from short to any as the caption of Table 7
            has it (its text has no such thing, nor has the authors' code).
        gap: Seconds of ``constant``. The authors' code has 50 frames.
        relax: Epochs of ``curriculum`` until any distance is allowed.
        inside: What must be in the tube: every frame of a window, as the paper says, or the
            middle frame of each clip. The authors' code looks at one frame alone, the middle one
            of the window (frame 16 of 32), and asks for 10 pixels of the mask or more there, which
            has no counterpart here: a frame counts where the object is seen at all.
        min_tracked: Frames of a video in which the object must be seen.
        short: What to do where a window is longer than its video.
    """

    distance: Distance = "varying"
    gap: float = 1.7
    relax: int = 100
    inside: Literal["clip", "middle"] = "clip"
    min_tracked: int = 60
    short: Short = "loop"

    def __post_init__(self) -> None:
        _positive(gap=self.gap, relax=self.relax, min_tracked=self.min_tracked)
        if self.distance not in get_args(Distance):
            raise ValueError(
                f"distance={self.distance!r}: choose one of {', '.join(get_args(Distance))}"
            )
        if self.inside not in ("clip", "middle"):
            raise ValueError(f"inside={self.inside!r}: choose clip or middle")

    @property
    @abstractmethod
    def window(self) -> int:
        """Frames of a window."""

    @property
    @abstractmethod
    def middles(self) -> Indices:
        """Where the middle frames of a window's clips are, counted from its first frame."""

    @abstractmethod
    def clips_of(self, query: int, key: int, coin: float) -> Indices:
        """The frames of the clips.

        Args:
            query: First frame of the query's window.
            key: First frame of the key's window.
            coin: A number in [0, 1).

        Returns:
            Frame numbers, (V, T), not yet brought into a short video.
        """

    def sample(self, times: Times, rng: np.random.Generator) -> Indices:
        """Chooses frames anywhere; see `Clips.sample`."""
        return self.draw(times, None, rng)[0]

    def draw(
        self, times: Times, tracked: Bools | None, rng: np.random.Generator, epoch: int = ALWAYS
    ) -> tuple[Indices, bool]:
        """Chooses frames inside a tube.

        Args:
            times: Presentation times, (N,) seconds, increasing.
            tracked: Whether the object is seen in each frame, (N,); None without tubes.
            rng: The source of every draw; two numbers are drawn.
            epoch: The epoch, from 0, for ``curriculum``.

        Returns:
            Frame indices in [0, N), (V, T), and whether they were drawn in the tube.

        Raises:
            ValueError: If the video is shorter than a window and ``short`` is ``error``.
        """
        pick, coin = rng.random(2)
        count = len(times)
        starts = np.arange(max(count - self.window, 0) + 1)
        low, high = self._bounds(times, len(starts) - 1, epoch)
        pair = None
        if tracked is not None and int(tracked.sum()) >= self.min_tracked:
            wanted = np.arange(self.window) if self.inside == "clip" else self.middles
            frames = _fit(starts[:, None] + wanted, count, self.short)
            pair = _pair(starts[tracked[frames].all(axis=1)], low, high, pick)
        inside = pair is not None
        if pair is None:
            pair = _pair(starts, min(low, len(starts) - 1), high, pick)
        assert pair is not None  # a video has a first frame
        return _fit(self.clips_of(*pair, coin), count, self.short), inside

    def _bounds(self, times: Times, room: int, epoch: int) -> tuple[int, int]:
        """The least and the most frames from one start to the other."""
        if self.distance == "varying":
            return 0, room
        if self.distance == "zero":
            return 0, 0
        if self.distance == "curriculum":
            return 0, int(room * min(1.0, (epoch + 1) / self.relax))
        first, end = _stretch(times)
        gap = round(self.gap * len(times) / (end - first)) if end > first else 0
        return gap, gap


@dataclass(frozen=True)
class TrackedPair(TrackedClips):
    """Two clips of the tracked object, or two frames of it: MoCo's query and key under PreViTS.

    Args:
        frames: Frames of a clip; PreViTS's image model has 1.
        stride: Stored frames from one frame of a clip to the next.
    """

    frames: int = 16
    stride: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(frames=self.frames, stride=self.stride)

    @property
    def shape(self) -> tuple[int, int]:
        """(V, T): query, key."""
        return 2, self.frames

    @property
    def window(self) -> int:
        """Frames of a window: from the first to the last of a clip."""
        return _span(self.frames, self.stride)

    @property
    def middles(self) -> Indices:
        """Where the middle frame of a clip is, (1,)."""
        return np.array([self.frames // 2 * self.stride])

    def clips_of(self, query: int, key: int, coin: float) -> Indices:
        """The frames of query and key, (2, T); nothing depends on ``coin``."""
        return np.array([[query], [key]]) + self.stride * np.arange(self.frames)


@dataclass(frozen=True)
class TrackedSpeeds(TrackedClips):
    """`SpeedClips` of the tracked object: RSPNet's three clips under PreViTS.

    A window is ``frames * max(speeds)`` consecutive frames.

    Args:
        frames: Frames of a clip.
        speeds: The two speeds: every how many stored frames one is taken.
    """

    frames: int = 16
    speeds: tuple[int, int] = (1, 2)

    def __post_init__(self) -> None:
        super().__post_init__()
        SpeedClips(self.frames, self.speeds)  # refuses what it refuses

    @property
    def shape(self) -> tuple[int, int]:
        """(V, T): query, key, key at the other speed."""
        return 3, self.frames

    @property
    def window(self) -> int:
        """Frames of a window."""
        return self.frames * max(self.speeds)

    @property
    def middles(self) -> Indices:
        """Where the middle frames of the clips of either speed are, (2,)."""
        return self.frames // 2 * np.array(self.speeds)

    def clips_of(self, query: int, key: int, coin: float) -> Indices:
        """The frames of query, key and key at the other speed, (3, T)."""
        speed, other = self.speeds if coin < 0.5 else self.speeds[::-1]
        starts, steps = np.array([[query], [key], [key]]), np.array([[speed], [speed], [other]])
        return starts + steps * np.arange(self.frames)


def _pair(starts: Indices, low: int, high: int, pick: float) -> tuple[int, int] | None:
    """Picks one of the ordered pairs of starts that are ``low`` to ``high`` apart, uniformly.

    Args:
        starts: Ascending, (S,).
        low: Least distance.
        high: Greatest distance.
        pick: A number in [0, 1).

    Returns:
        The pair; None if there is none.
    """
    before = np.searchsorted(starts, starts - high), np.searchsorted(starts, starts - low, "right")
    after = (
        np.searchsorted(starts, starts + max(low, 1)),
        np.searchsorted(starts, starts + high, "right"),
    )
    earlier = before[1] - before[0]  # (S,) partners at or before each start
    counts = earlier + np.maximum(after[1] - after[0], 0)
    ends = np.cumsum(counts)
    if not len(ends) or not ends[-1]:
        return None
    chosen = min(int(pick * ends[-1]), int(ends[-1]) - 1)
    first = int(np.searchsorted(ends, chosen, side="right"))
    place = chosen - int(ends[first] - counts[first])
    second = (
        before[0][first] + place
        if place < earlier[first]
        else after[0][first] + place - earlier[first]
    )
    return int(starts[first]), int(starts[second])


def _span(frames: int, stride: int) -> int:
    """Frames from the first to the last of a clip."""
    return (frames - 1) * stride + 1


def _stretch(times: Times) -> tuple[float, float]:
    """When the first frame appears, and when the last one would give way to the next."""
    gap = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    return float(times[0]), float(times[-1]) + gap


def _shown(times: Times, moments: npt.NDArray[np.float64]) -> Indices:
    """The frame on the screen at each moment: the last one to have appeared."""
    found = np.searchsorted(times, moments + 1e-6, side="right") - 1  # a microsecond of grace
    return np.clip(found, 0, len(times) - 1).astype(np.int64)


def _grid(times: Times, fps: float | None) -> Indices:
    """Frames that the video shows at the ticks of ``fps``; every frame once where it is None."""
    if fps is None:
        return np.arange(len(times))
    first, end = _stretch(times)
    ticks: npt.NDArray[np.float64] = np.arange(max(1, round((end - first) * fps))) / fps
    return _shown(times, first + ticks)


def _fit(indices: Indices, count: int, short: Short) -> Indices:
    """Brings indices beyond a video of ``count`` frames back into it."""
    needed = int(indices.max()) + 1
    if needed <= count:
        return indices.astype(np.int64)
    _refuse(short, needed - int(indices.min()), count)
    wrapped = np.minimum(indices, count - 1) if short == "clamp" else indices % count
    return wrapped.astype(np.int64)


def _refuse(short: Short, needed: int, count: int) -> None:
    if short == "error":
        raise ValueError(
            f"the clip needs {needed} frames and the video has {count}: shorten frames or stride, "
            "or set short to clamp or loop"
        )


def _positive(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and value <= 0:
            raise ValueError(f"{name}={value}: must be above 0")
