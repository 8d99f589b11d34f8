"""What is known of a run: its result, how it was set up, and why it is not a paper's."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lightning_vssl.report.settings import Settings


@dataclass(frozen=True)
class Setup:
    """How a run was set up, against the recipe that is nearest to it.

    Attributes:
        recipe: Its name; None if no recipe has these classes.
        changed: The recipe's value and the run's, by the name of each setting that differs; None
            if the run's folder has no settings.
    """

    recipe: str | None
    changed: dict[str, tuple[object, object]] | None


@dataclass(frozen=True)
class Pretraining:
    """What is known of the run that trained the weights.

    Attributes:
        data: Its data; empty if not known.
        built_in: Whether these were drawn by this package; None if not known.
        settings: Every value in force; None if not known.
        setup: Against its recipe.
        stopped: Where it ended before its time; empty if it did not.
    """

    data: str = ""
    built_in: bool | None = None
    settings: Settings | None = None
    setup: Setup = Setup(None, None)
    stopped: str = ""


@dataclass(frozen=True)
class Run:
    """One result.json and what lies beside it.

    Attributes:
        folder: The run's folder.
        evaluation: Class of the evaluation.
        data: What was measured on, by the papers' name.
        built_in: Whether these data were drawn by this package; None if not known.
        split: ``test`` or ``validation``.
        method: What trained the weights, by the papers' name; ``none`` for an untouched network.
        backbone: The network, by the papers' name.
        small: What is smaller in it than published; empty if nothing is.
        weights: Hash of the weights; None without.
        results: The numbers, in percent.
        complete: Whether no limit cut the measurement short.
        stopped: Where its training ended before its time; empty if it did not.
        protocol: As result.json says it.
        setup: Against the evaluation's recipe.
        pretraining: Of the weights; None without weights.
        pictures: Files that the run drew.
    """

    folder: Path
    evaluation: str
    data: str
    built_in: bool | None
    split: str
    method: str
    backbone: str
    small: str
    weights: str | None
    results: dict[str, float]
    complete: bool
    stopped: str
    protocol: dict[str, object]
    setup: Setup
    pretraining: Pretraining | None
    pictures: tuple[Path, ...]

    def notes(self, setting: str = "") -> tuple[str, ...]:
        """Why the numbers are not a paper's, in words; nothing if they may stand beside it.

        Args:
            setting: What the paper's row varies in the pretraining: this much is no difference.
        """
        return tuple(_notes(self, setting))


@dataclass(frozen=True)
class Other:
    """A run without a result, such as a pretraining, or a curve over several runs.

    Attributes:
        folder: The run's folder.
        title: What it is.
        pictures: Files that it drew.
    """

    folder: Path
    title: str
    pictures: tuple[Path, ...]


def _notes(run: Run, setting: str) -> Iterator[str]:
    if run.built_in is None:
        yield "data not at hand: real or built-in is not known"
    elif run.built_in:
        yield "built-in data"
    if not run.complete:
        yield "incomplete"
    if run.stopped:
        yield f"trained for {run.stopped}"
    if run.split != "test":
        yield "measured in validation"
    if run.small:
        yield f"small network ({run.small})"
    yield from _said("", run.setup, "")
    if run.pretraining is not None:
        yield from _pretrained(run.pretraining, setting)


def _pretrained(pretraining: Pretraining, setting: str) -> Iterator[str]:
    if pretraining.built_in:
        yield "pretrained on built-in videos"
    if pretraining.settings is None:
        yield "pretraining not known"
        return
    if pretraining.stopped:
        yield f"pretrained for {pretraining.stopped}"
    yield from _said("pretrained with ", pretraining.setup, setting)


def _said(prefix: str, setup: Setup, setting: str) -> Iterator[str]:
    if setup.changed is None:
        yield f"{prefix}settings not known"
    elif setup.recipe is None:
        yield f"{prefix}settings of no recipe"
    else:
        meant = [condition.partition("=")[0] for condition in setting.split("; ")]
        count = sum(not any(names(given, m) for m in meant) for given in setup.changed)
        if count:
            settings = f"{count} setting{'s' * (count > 1)}"
            yield f"{prefix}{settings} other than recipes/{setup.recipe}.yaml"


def names(given: str, name: str) -> bool:
    """Whether a setting's dotted name is the one that a paper's row calls ``name``.

    Args:
        given: For instance ``model.init_args.augment.init_args.tracks.class_path``.
        name: For instance ``tracks``, or ``augment.tracks``.
    """
    plain = given.replace(".init_args", "").removesuffix(".class_path")
    return bool(name) and plain.endswith(f".{name}")
