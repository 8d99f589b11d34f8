"""The nine classes of ImageNet-9, and which of ImageNet's 1,000 belong to them.

Xiao et al., Noise or Signal, ICLR 2021, section 2 and appendix A: 370 of the 1,000 classes lie
below one of nine synsets of WordNet, 630 below none. The numbers are those of the authors' file
``in_to_in9.json`` (github.com/MadryLab/backgrounds_challenge), written as ranges.
"""

import torch
from torch import Tensor

CLASSES: tuple[str, ...] = (
    "dog",
    "bird",
    "vehicle",
    "reptile",
    "carnivore",
    "insect",
    "instrument",
    "primate",
    "fish",
)
"""The nine classes, in the order of their labels."""

SYNSETS: tuple[str, ...] = (
    "n02084071",
    "n01503061",
    "n04576211",
    "n01661091",
    "n02075296",
    "n02159955",
    "n03800933",
    "n02469914",
    "n02512053",
)
"""Their synsets of WordNet 3.0."""

# First and last class of each run, of the 1,000 sorted by synset.
_RUNS = {
    "dog": "151-170 173-268",
    "bird": "7-24 87-100 127-146",
    "vehicle": (
        "407-408 428 436 444 468 511 547 555 561 565 569 573 586 603 609 612 627 656 661 665 "
        "670-671 675 690 705 717 734 751 757 791 802-803 817 820 829 847 864 866-867 870 880"
    ),
    "reptile": "33-68",
    "carnivore": "269-280 286-299 356-362 387-388",
    "insect": "300-326",
    "instrument": (
        "401-402 420 432 486 494 513 541 546 558 566 577 579 593-594 641-642 683-684 687 699 776 "
        "822 875 881 889"
    ),
    "primate": "365-384",
    "fish": "0-6 389-397",
}


def superclasses(num_classes: int = 1000) -> Tensor:
    """Which of the nine classes each class of a classifier is.

    Args:
        num_classes: 1,000 for ImageNet's classes, sorted by synset; 9 for a classifier of the nine
            themselves.

    Returns:
        (num_classes,) int64 in [0, 9); -1 for a class that is none of them: always wrong.

    Raises:
        ValueError: If it is another number.
    """
    if num_classes == len(CLASSES):
        return torch.arange(len(CLASSES))
    if num_classes != 1000:
        raise ValueError(
            f"ImageNet-9 is for classifiers of ImageNet's 1,000 classes or of its own 9, got "
            f"{num_classes}"
        )
    mapping = torch.full((num_classes,), -1)
    for label, name in enumerate(CLASSES):
        for run in _RUNS[name].split():
            first, _, last = run.partition("-")
            mapping[int(first) : int(last or first) + 1] = label
    return mapping


def label_of(folder: str) -> int:
    """The class that a folder of ImageNet-9 is for, by its English name or its synset.

    Args:
        folder: Name of the folder, such as ``02_wheeled vehicle`` or ``n04576211``.

    Returns:
        Its label in [0, 9); -1 for none.
    """
    name = folder.lower()
    found = [
        label
        for label, (word, synset) in enumerate(zip(CLASSES, SYNSETS, strict=True))
        if word in name or synset in name
    ]
    return found[0] if len(found) == 1 else -1
