"""Cutting windows out of frames that libav has decoded, straight from their planes."""

from itertools import pairwise

import av
import numpy as np
from av.filter import Graph
from av.video.reformatter import VideoReformatter

from lightning_vssl.data.source import Box, FrameCutter, Pixels, snapped
from lightning_vssl.data.windows import Interpolation


class PlaneCutter(FrameCutter[av.VideoFrame]):
    """Cuts one window of decoded frames.

    Whole frames and windows that are not scaled go through one conversion to RGB that gives the
    bits of `frame.to_ndarray(format="rgb24")`. Scaled windows go through a filter graph that
    moves the plane pointers to the window and converts and scales in one step.

    Args:
        window: x0, y0, x1, y1 in pixels of the frame as displayed.
        size: (H, W) of the output; None for the window's own.
        stored: (width, height) of the frames as they are stored.
        turn: Quarter turns counter-clockwise from there to what is displayed.
        unit: Luma pixels per chroma pixel, across and down: edges of a scaled window move to
            multiples of them.
        interpolation: How windows are scaled.
    """

    def __init__(
        self,
        window: Box,
        size: tuple[int, int] | None,
        stored: tuple[int, int],
        turn: int,
        unit: tuple[int, int],
        interpolation: Interpolation,
    ) -> None:
        self._interpolation = interpolation
        self._width, self._height = stored
        self._turn = turn
        displayed = (stored[1], stored[0]) if turn % 2 else stored
        x0, y0, x1, y1 = _turned(window, turn, *stored)
        units = (1, 1) if size is None else unit
        left, right = snapped(x0, x1, units[0], self._width)
        top, bottom = snapped(y0, y1, units[1], self._height)
        self._box = (left, top, right, bottom)
        self.used = _turned(self._box, -turn, *displayed)
        self._size = size if size is None or turn % 2 == 0 else (size[1], size[0])
        self._reformatter = VideoReformatter()
        self._graph: Graph | None = None
        self._layout: tuple[object, ...] = ()

    def __call__(self, frame: av.VideoFrame) -> Pixels:
        """Cut (H, W, 3) uint8."""
        pixels = self._whole(frame) if self._size is None else self._scaled(frame)
        return np.rot90(pixels, self._turn) if self._turn else pixels

    def _whole(self, frame: av.VideoFrame) -> Pixels:
        rgb = self._reformatter.reformat(
            frame, width=self._width, height=self._height, format="rgb24", threads=1
        )
        left, top, right, bottom = self._box
        return _planes(rgb)[0].reshape(self._height, self._width, 3)[top:bottom, left:right]

    def _scaled(self, frame: av.VideoFrame) -> Pixels:
        layout = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
        if self._graph is None or layout != self._layout:
            self._graph = self._build(frame)
            self._layout = layout
        self._graph.vpush(frame)
        green, blue, red = _planes(self._graph.vpull())
        return np.stack([red, green, blue], axis=-1)

    def _build(self, frame: av.VideoFrame) -> Graph:
        assert self._size is not None
        left, top, right, bottom = self._box
        graph = Graph()
        graph.threads = 1
        nodes = [
            graph.add(
                "buffer",
                video_size=f"{frame.width}x{frame.height}",
                pix_fmt=frame.format.name,
                time_base="1/1",
                colorspace=str(int(frame.colorspace)),
                range=str(int(frame.color_range)),
            )
        ]
        if (frame.width, frame.height) != (self._width, self._height):
            nodes.append(graph.add("scale", f"{self._width}:{self._height}:flags=bilinear"))
        if self._box != (0, 0, self._width, self._height):
            args = f"{right - left}:{bottom - top}:{left}:{top}:exact=1"
            nodes.append(graph.add("crop", args))
        height, width = self._size
        # Planes of RGB, because libav then rounds correctly and computes chroma for every pixel;
        # straight to packed RGB it does neither (1.5 grey levels darker, chroma for every second
        # pixel) and takes longer.
        flags = f"{self._interpolation}+full_chroma_int+accurate_rnd+bitexact"
        # Of a cubic: B and C of Mitchell's family, here a = -C = -0.5.
        cubic = ":param0=0:param1=0.5" if self._interpolation == "bicubic" else ""
        nodes.append(graph.add("scale", f"{width}:{height}:flags={flags}{cubic}"))
        nodes.append(graph.add("format", "gbrp"))
        nodes.append(graph.add("buffersink"))
        for one, other in pairwise(nodes):
            one.link_to(other)
        graph.configure()
        return graph


def _planes(frame: av.VideoFrame) -> list[Pixels]:
    """Views of the planes of a frame, (H, bytes of a row) each; they live as long as the frame."""
    rows = [
        np.frombuffer(memoryview(plane), dtype=np.uint8).reshape(-1, plane.line_size)
        for plane in frame.planes
    ]
    wide = frame.width * (3 if len(rows) == 1 else 1)
    return [row[: frame.height, :wide] for row in rows]


def chroma_unit(layout: av.VideoFormat | None) -> tuple[int, int]:
    """Luma pixels per chroma pixel, across and down."""
    if layout is None:
        return 2, 2
    return 16 // layout.chroma_width(16), 16 // layout.chroma_height(16)


def _turned(box: Box, quarters: int, width: float, height: float) -> Box:
    """Coordinates of a box before a frame of width x height was turned counter-clockwise.

    Turning back is the same with `-quarters` and the sides of the frame as it is then.
    """
    x0, y0, x1, y1 = box
    match quarters % 4:
        case 1:
            return width - y1, x0, width - y0, x1
        case 2:
            return width - x1, height - y1, width - x0, height - y0
        case 3:
            return y0, height - x1, y1, height - x0
        case _:
            return box
