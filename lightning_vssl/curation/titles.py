"""Whether a title contains the name of a class or a synonym (VITO section 3.2).

A text becomes a row of words before it is compared, in this order:

- compatibility forms become the plain ones (NFKC: full-width and mathematical letters, ligatures);
- case is folded as Unicode says (``STRASSE`` is ``straße``);
- marks on letters are dropped, in names and in titles: titles are typed both with and without them
  (``Crème brulee``). Letters that are no letter with a mark, such as ø or ł, stay what they are;
- characters without a width (joiners, soft hyphens, direction marks) are dropped;
- whatever is neither a letter nor a digit parts words: blanks, hyphens, apostrophes, underscores,
  punctuation, emoji. ``man-eater`` is ``man eater``, and ``cat's`` contains ``cat``;
- each letter of a script without case (Han, kana, Hangul, Thai, Arabic, ...) is a word of its own,
  since most of them are written without blanks: in ``犬tench釣り`` stands the word ``tench``.

A name is contained when its words stand in the title side by side and in order. ``cat`` is
therefore not in ``catfish``, nor in ``cats``: the paper says "included the category's name or a
synonym", and no more is done than that.
"""

import csv
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from timm.data.imagenet_info import ImageNetInfo

_SEPARATOR = "|"
_COLUMNS = ("class", "names")


def words(text: str) -> str:
    """Turns a text into its words; see the module's docstring.

    Args:
        text: Any text.

    Returns:
        The words with one blank before, between and after them, so that ``words(name) in
        words(title)`` says whether a name is contained; empty where there is no word.
    """
    if text.isascii():  # most are: ten times faster
        found = re.findall("[a-z0-9]+", text.lower())
        return f" {' '.join(found)} " if found else ""
    text = unicodedata.normalize("NFKC", text).casefold()
    if not text.isascii():
        apart = unicodedata.normalize("NFKD", text)
        kept = (c for c in apart if unicodedata.category(c) not in ("Mn", "Me", "Cf"))
        text = unicodedata.normalize("NFC", "".join(kept))
    found = "".join(_spaced(character) for character in text).split()
    return f" {' '.join(found)} " if found else ""


def contains(title: str, names: Iterable[str]) -> bool:
    """Whether a title contains one of the names.

    Args:
        title: A title, any text.
        names: Names as `words` gives them.
    """
    inside = words(title)
    return any(name in inside for name in names)


def _spaced(character: str) -> str:
    """A character of a word, or what stands for one that parts words."""
    if not character.isalnum():
        return " "
    return f" {character} " if unicodedata.category(character) == "Lo" else character


@dataclass(frozen=True)
class ClassNames:
    """The classes that videos are looked for, and what each is called.

    Args:
        ids: One identifier per class, in the order of the classifier's outputs.
        names: The names of each class, as they are written.

    Raises:
        ValueError: If there is no class, or an identifier stands twice.
    """

    ids: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        if not self.ids or len(self.ids) != len(self.names):
            raise ValueError(f"{len(self.ids)} classes with {len(self.names)} rows of names")
        if len(set(self.ids)) < len(self.ids):
            twice = next(name for name in self.ids if self.ids.count(name) > 1)
            raise ValueError(f"class {twice!r} stands twice")

    @classmethod
    def imagenet(cls) -> Self:
        """The 1,000 classes of ImageNet: WordNet identifiers, and the lemmas of each synset."""
        info = ImageNetInfo()
        ids = info.label_names()  # type: ignore[no-untyped-call]
        names = info.label_descriptions()
        return cls(tuple(ids), tuple(tuple(n.strip() for n in row.split(",")) for row in names))

    @classmethod
    def read(cls, file: Path) -> Self:
        """Reads classes from a CSV file with the header ``class,names``.

        Args:
            file: One class a row, in the order of the classifier's outputs; its names parted by
                ``|``. A class without a name may stand there, but no video can be looked for it.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is no such table, is empty, or a class stands twice.
        """
        if not file.is_file():
            raise FileNotFoundError(
                f"no table of classes at {file}: give a CSV file with the header "
                f"{','.join(_COLUMNS)}, or none for the 1,000 classes of ImageNet"
            )
        with file.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines)
            absent = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
            if absent:
                raise ValueError(
                    f"{file} has no column {', '.join(absent)}: its header is {','.join(_COLUMNS)}"
                )
            rows = [(row["class"] or "", row["names"] or "") for row in reader]
        for number, (name, _) in enumerate(rows, 1):
            if not name.strip():
                raise ValueError(f"{file}, row {number}: the class is empty")
        try:
            ids = tuple(name.strip() for name, _ in rows)
            return cls(ids, tuple(_parted(names) for _, names in rows))
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def folded(self) -> tuple[tuple[str, ...], ...]:
        """The names of each class as `words` gives them; names without a word are left out."""
        return tuple(
            tuple(dict.fromkeys(name for name in map(words, row) if name)) for row in self.names
        )

    @cached_property
    def _by_id(self) -> Mapping[str, int]:
        return {name: label for label, name in enumerate(self.ids)}

    @cached_property
    def _by_name(self) -> Mapping[str, Sequence[int]]:
        owners: dict[str, list[int]] = {}
        for label, names in enumerate(self.folded):
            for name in names:
                owners.setdefault(name, []).append(label)
        return owners

    def label(self, query: str) -> int:
        """Finds a class.

        Args:
            query: Its identifier, or one of its names where no other class has it too.

        Returns:
            Its number, from 0.

        Raises:
            ValueError: If there is no such class, several share the name, or it has no name that
                could stand in a title.
        """
        label = self._by_id.get(query)
        if label is None:
            owners = self._by_name.get(words(query), ())
            if not owners:
                raise ValueError(
                    f"unknown class {query!r}: give the identifier of one of the {len(self)} "
                    f"classes, such as {self.ids[0]}, or one of its names"
                )
            if len(owners) > 1:
                which = " or ".join(self.ids[owner] for owner in owners)
                raise ValueError(f"several classes are called {query!r}: give {which}")
            label = owners[0]
        if not self.folded[label]:
            raise ValueError(f"class {query!r} has no name or synonym to look for in titles")
        return label


def _parted(names: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in names.split(_SEPARATOR) if name.strip())
