"""Mini-Kinetics-200 (Xie et al. 2018), and PreViTS's test of it without persons."""

import logging
from pathlib import Path

import torch
from torch import Tensor

from lightning_vssl.data.backgrounds import Variant, variant_of
from lightning_vssl.data.manifest import Entry
from lightning_vssl.datamodules.base import Split, require_files
from lightning_vssl.datamodules.kinetics import Kinetics
from lightning_vssl.datamodules.options import Unpack, VideoOptions
from lightning_vssl.datamodules.variants import in_variants, rendered_folder

_log = logging.getLogger(__name__)

_SOURCE = "github.com/s9xie/Mini-Kinetics-200"
_CLASSES = 200
_SPAN = len("_000000_000010")  # behind the identifier in a clip's name


class MiniKinetics(Kinetics):
    """The 200 largest classes of Kinetics-400, 400 training and 25 validation videos of each.

    Kinetics-400 as `Kinetics` reads it, and two lists of YouTube's identifiers, one a line:
    ``train_ytid_list.txt`` (80,000) and ``val_ytid_list.txt`` (5,000). The classes are those that
    the training list names, sorted. What the lists name and the official CSV lacks counts as
    missing. Tests read the validation list.

    PreViTS's test without persons (its supplement, section 2): with ``rendered``, the folder that
    recipes/jobs/backgrounds.yaml has filled from boxes of persons, tests read every video in all
    ``variants``, variant after variant.

    Args:
        root: Folder of Kinetics-400.
        lists: Folder of the two lists.
        rendered: Folder of the variants: ``variants`` in the run's folder of the job. None to test
            the videos as they are.
        variants: Which variants are tested.
        options: What every data module of videos takes; see `VideoDataModule`.
    """

    def __init__(
        self,
        root: Path,
        *,
        lists: Path,
        rendered: Path | None = None,
        variants: tuple[Variant, ...] = ("original", "no_fg"),
        **options: Unpack[VideoOptions],
    ) -> None:
        super().__init__(
            root,
            variant="400",
            test_split="val",
            **options,
        )
        self.lists = Path(lists).expanduser()
        self.rendered = rendered_folder(rendered, variants)
        self.variants: tuple[Variant, ...] = tuple(variants) if rendered is not None else ()
        self.validated_on_test = True

    def entries(self, split: Split) -> tuple[list[Entry], tuple[str, ...]]:
        """The videos of a split that its list names; of a test, all their variants."""
        train = self.lists / "train_ytid_list.txt"
        own = train if split == "train" else self.lists / "val_ytid_list.txt"
        require_files(dict.fromkeys((train, own), _SOURCE), "Mini-Kinetics-200")
        rows, names = super().entries("train")
        rows = self._named(rows, train)
        numbers = sorted({row.label for row in rows})
        if len(numbers) != _CLASSES:
            _log.warning("%s names %d classes, it should be %d", train, len(numbers), _CLASSES)
        if split != "train":
            rows = self._named(super().entries(split)[0], own)
        strange = sorted({names[row.label] for row in rows} - {names[n] for n in numbers})
        if strange:
            raise ValueError(f"{own} names videos of classes that {train} lacks: {strange[:10]}")
        place = {number: label for label, number in enumerate(numbers)}
        entries = [Entry(row.path, place[row.label]) for row in rows]
        classes = tuple(names[number] for number in numbers)
        if split == "test" and self.rendered is not None and self._job() is None:
            entries = in_variants(entries, classes, self.rendered, self.variants)
        return entries, classes

    def row_variants(self) -> Tensor:
        """Which of ``variants`` each row of the test is, (N,) int64."""
        assert self.rendered is not None
        paths = self.manifest("test").table.column("path").to_pylist()
        return torch.from_numpy(variant_of(self.variants, self.rendered, paths))

    def _named(self, rows: list[Entry], listed: Path) -> list[Entry]:
        """The rows that a list names, in the order of the CSV."""
        wanted = set(listed.read_text(encoding="utf-8").split())
        found = {_identifier(row): row for row in rows}
        lost = sorted(wanted - found.keys())
        if not wanted or len(lost) > self.max_missing * len(wanted):
            raise ValueError(
                f"{listed} names {len(wanted)} videos, of which the official CSV lacks "
                f"{len(lost)} ({', '.join(lost[:5])}, ...): is it that of Kinetics-400? More than "
                f"max_missing={self.max_missing:g} allows"
            )
        if lost:
            _log.warning("the CSV lacks %d of the %d videos of %s", len(lost), len(wanted), listed)
        return [row for name, row in found.items() if name in wanted]


def _identifier(row: Entry) -> str:
    """YouTube's identifier in the name of a clip."""
    return row.path.rpartition("/")[2].rpartition(".")[0][:-_SPAN]
