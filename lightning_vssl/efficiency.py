"""The command `lightning-vssl efficiency`: accuracy by the share of labels (CtP, Figure 4).

One recipe of an evaluation is fitted and tested for every share of the training labels, from the
pretrained weights and from scratch, each in a run of its own. A run that has its test's result is
not repeated, one that was cut short goes on from its last checkpoint, and the picture is drawn
anew after each.
"""

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path

from matplotlib.figure import Figure

from lightning_vssl.backbones.weights import sha256
from lightning_vssl.data.atomic import whole_file
from lightning_vssl.evaluation.result import RESULT, write_json

Runner = Callable[[list[str]], None]
"""Runs one command line, what stands behind `lightning-vssl`."""

CURVE = "curve.json"
PICTURE = "curve.png"
PRETRAINED, SCRATCH = "pretrained", "scratch"
FRACTIONS = (0.01, 0.05, 0.1, 0.2, 0.5, 1.0)  # the paper's figure has no table: these are ours
_OURS = (
    ("--data.label_fraction", "--fractions"),
    ("--model.weights", "--weights"),
    ("--trainer.default_root_dir", "--out"),
    ("--seed_everything", "--seeds"),
    ("--ckpt_path", "nothing: what was cut short goes on by itself"),
)


@dataclass(frozen=True)
class Point:
    """One run of the curve.

    Attributes:
        initialisation: `PRETRAINED` or `SCRATCH`.
        fraction: Share of the training labels, in (0, 1].
        seed: The run's seed, which also draws the share.
        value: Result of the test, in percent.
        complete: Whether all videos were trained on and tested.
        result: Its file, relative to the curve's folder.
    """

    initialisation: str
    fraction: float
    seed: int
    value: float
    complete: bool
    result: str


def draw_efficiency(points: Sequence[Point], *, metric: str) -> Figure:
    """Draws accuracy over the share of labels, a line through the mean of the seeds.

    Args:
        points: At least one.
        metric: What is written at the axis.

    Returns:
        The figure; the share of labels is on a logarithmic axis.
    """
    figure = Figure(figsize=(5.6, 4.0), layout="constrained")
    axes = figure.subplots()
    for colour, name in (("C0", PRETRAINED), ("C1", SCRATCH)):
        found: dict[float, list[float]] = defaultdict(list)
        for point in points:
            if point.initialisation == name:
                found[point.fraction].append(point.value)
        shares = sorted(found)
        means = [sum(found[share]) / len(found[share]) for share in shares]
        if not shares:
            continue
        axes.plot([100 * share for share in shares], means, "-o", color=colour, label=name)
        for share, mean in zip(shares, means, strict=True):
            dots = found[share]
            axes.plot([100 * share] * len(dots), dots, ".", color=colour, alpha=0.5)
            axes.annotate(
                f"{mean:.1f}",
                (100 * share, mean),
                xytext=(4, -11),
                textcoords="offset points",
                fontsize=8,
                color=colour,
            )
    ticks = sorted({100 * point.fraction for point in points})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel="labelled training videos, %", ylabel=f"{metric}, %")
    axes.margins(x=0.08, y=0.1)
    if not all(point.complete for point in points):
        axes.set_title("some runs are cut short: not the protocol's numbers", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    return figure


class Efficiency:
    """The runs of one curve, in one folder.

    Args:
        out: The folder: ``<out>/<initialisation>/<fraction>/seed<seed>`` are the runs.
        arguments: What every run is given: the recipe and further options of ``fit``.
        fractions: Shares of the training labels, in (0, 1].
        weights: What was pretrained; None draws the curve from scratch alone.
        seeds: Seeds of the runs.
        scratch: Whether to draw the curve from scratch too.
        metric: Which of the test's results.
        run: Runs a command line.

    Raises:
        ValueError: If a share is out of its range, nothing is to be drawn, the arguments contain
            what this command sets, or the folder holds another curve.
        FileNotFoundError: If there are no such weights.
    """

    def __init__(
        self,
        out: Path,
        arguments: Sequence[str],
        *,
        fractions: Sequence[float] = FRACTIONS,
        weights: str | None = None,
        seeds: Sequence[int] = (0,),
        scratch: bool = True,
        metric: str = "top1",
        run: Runner,
    ) -> None:
        for fraction in fractions:
            if not 0 < fraction <= 1:
                raise ValueError(f"--fractions must lie in (0, 1], got {fraction:g}")
        for word in arguments:
            for option, instead in _OURS:
                if word.split("=")[0] == option:
                    raise ValueError(f"{option} differs from run to run: give {instead}")
        if weights is None and not scratch:
            raise ValueError("nothing to draw: give --weights, or leave out --no-scratch")
        self.out = out
        self.arguments = list(arguments)
        self.fractions = sorted(set(fractions))
        self.weights = weights
        self.hash = None if weights is None else sha256(weights)
        self.seeds = list(dict.fromkeys(seeds))
        self.starts = [PRETRAINED] * (weights is not None) + [SCRATCH] * scratch
        self.metric = metric
        self.run = run
        self.points = self._earlier()

    def _earlier(self) -> list[Point]:
        """The points that the folder holds, of a curve with the same settings."""
        file = self.out / CURVE
        if not file.is_file():
            return []
        try:
            earlier = json.loads(file.read_text(encoding="utf-8"))
            points = [Point(**point) for point in earlier["points"]]
            before = {name: earlier[name] for name in ("arguments", "metric", "weights_sha256")}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{file} is not a curve of this command ({error}): name another --out"
            ) from error
        if not points and not any(self.out.glob("*/*/seed*/checkpoints/*.ckpt")):
            return []  # nothing was trained so: its first run failed, of a misspelt option perhaps
        if self.hash is None:  # the curve from scratch is added to, or made again
            self.hash = before["weights_sha256"]
            self.weights = self.weights or earlier["weights"]
        now = {"arguments": self.arguments, "metric": self.metric}
        now["weights_sha256"] = before["weights_sha256"] and self.hash
        for name, value in now.items():
            if value != before[name]:
                raise ValueError(
                    f"{file} was begun with other {name}: {before[name]}, now {value}; "
                    "give those again, or name another --out"
                )
        return points

    def __call__(self) -> None:
        """Runs what is missing and draws the curve after each run."""
        self._write()
        for fraction in self.fractions:  # the cheapest first
            for start in self.starts:
                for seed in self.seeds:
                    self._run(start, fraction, seed)

    def _run(self, start: str, fraction: float, seed: int) -> None:
        root = self.out / start / f"{fraction:g}"
        folder = root / f"seed{seed}"
        words = [*self.arguments, "--seed_everything", str(seed)]
        words += ["--trainer.default_root_dir", str(root), "--data.label_fraction", str(fraction)]
        words += ["--model.weights", str(self.weights) if start == PRETRAINED else "null"]
        value = self._tested(folder)
        if value is None:
            last = folder / "checkpoints" / "last.ckpt"
            self.run(["fit", *words, *(["--ckpt_path", "last"] if last.is_file() else [])])
            self.run(["test", *words, "--ckpt_path", "last"])
            value = self._tested(folder)
        if value is None:
            raise ValueError(f"the test left no {RESULT} in {folder}")
        number, complete = value
        place = (folder / RESULT).relative_to(self.out).as_posix()
        point = Point(start, fraction, seed, number, complete, place)
        self.points = [p for p in self.points if p.result != place] + [point]
        self._write()

    def _tested(self, folder: Path) -> tuple[float, bool] | None:
        """The number of a run's test, and whether it is of all videos; None before its test."""
        file = folder / RESULT
        if not file.is_file():
            return None
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(
                f"{file} is no JSON ({error}): remove it, and it is made again"
            ) from error
        if content.get("split") != "test":
            return None
        if self.metric not in content["results"]:
            raise ValueError(
                f"{file} has no result {self.metric!r}, it has {', '.join(content['results'])}: "
                "choose by --metric"
            )
        return float(content["results"][self.metric]), bool(content["complete"])

    def _write(self) -> None:
        content = {
            "arguments": self.arguments,
            "metric": self.metric,
            "unit": "percent",
            "weights": self.weights,
            "weights_sha256": self.hash,
            "points": [asdict(point) for point in self.points],
        }
        write_json(self.out / CURVE, content)
        if self.points:
            figure = draw_efficiency(self.points, metric=self.metric)
            with whole_file(self.out / PICTURE) as temporary:
                figure.savefig(temporary, format="png", dpi=150)


def in_a_process(words: list[str]) -> None:
    """Runs a command line of this library in a process of its own.

    A process each, because a run on several devices starts its helpers with the command line that
    it was itself started with.

    Args:
        words: What stands behind `lightning-vssl`.

    Raises:
        ChildProcessError: If it ends with an error.
    """
    ended = subprocess.run([sys.executable, "-m", "lightning_vssl", *words], check=False)
    if ended.returncode:
        raise ChildProcessError(
            f"`lightning-vssl {' '.join(words)}` ended with status {ended.returncode}; the same "
            "efficiency command goes on from there"
        )


def efficiency_command(arguments: list[str], run: Runner = in_a_process) -> None:
    """Reads the command line and makes the curve.

    Args:
        arguments: What stands behind `lightning-vssl efficiency`.
        run: Runs a command line.
    """
    parser = argparse.ArgumentParser(
        prog="lightning-vssl efficiency",
        description="Accuracy by the share of labels: fits and tests a recipe for every share, "
        "pretrained and from scratch, and draws both (CtP, Figure 4). What has a result is not "
        "run again. Every other option goes to fit and test, such as --data.root.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="append", required=True, help="an evaluation's recipe")
    parser.add_argument("--weights", help="what was pretrained; without it, scratch alone")
    parser.add_argument(
        "--fractions",
        type=float,
        nargs="+",
        default=list(FRACTIONS),
        metavar="SHARE",
        help=f"shares of the labels, in (0, 1] [{' '.join(map(str, FRACTIONS))}]",
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="each draws its own share [0]"
    )
    parser.add_argument("--no-scratch", action="store_true", help="the pretrained curve alone")
    parser.add_argument("--metric", default="top1", help="which result of the test")
    parser.add_argument("--out", type=Path, help="folder of the curve; runs/efficiency_<recipe>")
    given, rest = parser.parse_known_args(arguments)
    ours = [f"--{name.replace('_', '-')}" for name in vars(given)]
    for word in rest:  # fit would be asked for it, and knows nothing of ours
        if close := get_close_matches(word.partition("=")[0], ours, n=1, cutoff=0.85):
            raise ValueError(f"efficiency has no option {word}; did you mean {close[0]}?")
    out = given.out or Path("runs") / f"efficiency_{Path(given.config[0]).stem}"
    words = [word for config in given.config for word in ("--config", config)]
    curve = Efficiency(
        out,
        [*words, *rest],
        fractions=given.fractions,
        weights=given.weights,
        seeds=given.seeds,
        scratch=not given.no_scratch,
        metric=given.metric,
        run=run,
    )
    curve()
    print(f"{len(curve.points)} points: {out / PICTURE}, {out / CURVE}")
