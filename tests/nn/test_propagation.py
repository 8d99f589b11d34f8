"""Propagated labels: tiles against the full affinity in float64, and what must hold exactly."""

import math

import pytest
import torch
from torch.nn import functional as F

from lightning_vssl.nn.propagation import LabelPropagation, match_whole, match_window


def features(frames, height, width, channels=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(frames, height, width, channels, generator=generator, dtype=torch.float64)
    return list(F.normalize(drawn, dim=-1))


def naive(query, keys, limited, radius, top, temperature, labels):
    """Full affinity to every place of every frame, cell by cell.

    ``limited`` says which frames are asked within the radius alone.
    """
    height, width, _ = query.shape
    out = torch.zeros(height, width, labels[0].shape[-1], dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            found = []
            for key, near, label in zip(keys, limited, labels, strict=True):
                for v in range(height):
                    for u in range(width):
                        if near and (v - y) ** 2 + (u - x) ** 2 >= radius**2:
                            continue
                        found.append((float(query[y, x] @ key[v, u]), label[v, u]))
            found.sort(key=lambda one: -one[0])
            weights = [math.exp(value / temperature) for value, _ in found[:top]]
            for weight, (_, label) in zip(weights, found, strict=False):
                out[y, x] += weight / sum(weights) * label
    return out


@pytest.mark.parametrize("tile", [1, 3, 16])
@pytest.mark.parametrize("radius", [1, 2.5, 3, 40])
@pytest.mark.parametrize("begin", ["window", "whole"])
def test_equals_naive(tile, radius, begin):
    height, width, top = 5, 8, 6
    first, *recent, query = features(5, height, width)
    labels = [torch.rand(height, width, 3, dtype=torch.float64) for _ in range(4)]
    made = LabelPropagation(begin=begin, radius=radius, top=top, temperature=0.3, tile=tile)
    found = made.vote(made.match(query, first, recent), labels)
    limited = [begin == "window", True, True, True]
    wanted = naive(query, [first, *recent], limited, radius, top, 0.3, labels)
    assert torch.allclose(found, wanted, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"begin": "whole"}, {"radius": None}])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_mixed_precision_changes_nothing(kind, options):
    """Features that are much alike, as real ones are: bfloat16 would not tell them apart."""
    drawn = torch.randn(5, 6, 9, 16) + 3 * torch.randn(16)
    feats = F.normalize(drawn, dim=-1)
    labels = F.one_hot(torch.randint(0, 3, (6, 9)), 3).float()
    made = LabelPropagation(**{"radius": 4, **options})
    plain = list(made(feats, labels))
    with torch.autocast("cpu", kind):
        mixed = list(made(feats, labels))
    assert all(torch.equal(a, b) for a, b in zip(plain, mixed, strict=True))


def test_without_radius_all_is_asked():
    first, *recent, query = features(4, 4, 5)
    labels = [torch.rand(4, 5, 2, dtype=torch.float64) for _ in range(3)]
    made = LabelPropagation(radius=None, top=7, temperature=0.2)
    found = made.vote(made.match(query, first, recent), labels)
    wanted = naive(query, [first, *recent], [False] * 3, 0, 7, 0.2, labels)
    assert torch.allclose(found, wanted, atol=1e-12)


def test_radius_is_strict():
    """A place as far away as the radius is not asked: of a row of cells, two are left beside."""
    query, key = torch.ones(1, 9, 1), torch.arange(9.0).reshape(1, 9, 1)
    found = match_window(query, [key], radius=2, top=3)
    assert found.place[0, 4].tolist() == [5, 4, 3]
    further = match_window(query, [key], radius=2.1, top=5)
    assert further.place[0, 4].tolist() == [6, 5, 4, 3, 2]


def test_fewer_places_than_asked_for():
    """Where the window holds less than ``top``, what is missing has no weight."""
    first, query = features(2, 3, 3)
    made = LabelPropagation(radius=1, top=10)
    matches = made.match(query, first, [first])
    assert matches.likeness.isinf().sum(-1).unique().tolist() == [matches.likeness.shape[-1] - 2]
    labels = torch.rand(3, 3, 2, dtype=torch.float64)
    assert torch.allclose(made.vote(matches, [labels, labels]), labels)


def test_negative_likeness_counts_as_any():
    query, key = torch.ones(2, 2, 1), -torch.rand(2, 2, 1)
    labels = torch.rand(2, 2, 4)
    made = LabelPropagation(radius=1, top=1)
    assert torch.equal(made.vote(made.match(query, key, [key]), [labels, labels]), labels)


def naive_sequence(feats, labels, *, context, begin, early, radius, top, temperature):
    """Labels of all frames by the papers' rules, with lists of every frame that is asked."""
    told = [labels]
    for t in range(1, len(feats)):
        numbers = [max(i, 0) for i in range(t - context, t) if early == "repeat" or i >= 0]
        numbers = [0, *numbers]
        limited = [begin == "window"] + [True] * (len(numbers) - 1)
        keys = [feats[i] for i in numbers]
        asked = [told[i] for i in numbers]
        told.append(naive(feats[t], keys, limited, radius, top, temperature, asked))
    return told


@pytest.mark.parametrize(("begin", "early"), [("window", "fewer"), ("whole", "repeat")])
def test_sequence_equals_naive(begin, early):
    """VFS's and CRW's contexts: the first frame twice early on, or filled up with."""
    feats = features(6, 3, 5)
    labels = F.one_hot(torch.randint(0, 3, (3, 5)), 3).double()
    options = {"context": 3, "begin": begin, "early": early, "radius": 2.5, "top": 5}
    made = LabelPropagation(**options, temperature=0.3, tile=2)
    wanted = naive_sequence(feats, labels, **options, temperature=0.3)
    for found, right in zip(made(iter(feats), labels), wanted, strict=True):
        assert torch.allclose(found, right, atol=1e-12)
    assert (wanted[-1] - wanted[1]).abs().max() > 0.1  # there is something to compare


def test_early_options_differ():
    feats = features(3, 3, 5)
    labels = F.one_hot(torch.randint(0, 3, (3, 5)), 3).double()
    last = [
        list(LabelPropagation(early=early, context=3, radius=2)(iter(feats), labels))[-1]
        for early in ("fewer", "repeat")
    ]
    assert (last[0] - last[1]).abs().max() > 0.01


def test_labels_follow_what_moves():
    """A pattern that is shifted takes its labels along, as far as the window reaches."""
    pattern = features(1, 6, 30, channels=16)[0]
    feats = [pattern.roll(2 * t, 1) for t in range(5)]
    labels = torch.zeros(6, 30, 2, dtype=torch.float64)
    labels[..., 0] = 1
    labels[2:4, 5:10] = torch.tensor([0.0, 1.0], dtype=torch.float64)
    made = LabelPropagation(context=2, radius=3, top=1)
    for t, found in enumerate(made(feats, labels)):
        assert torch.allclose(found[:, 2 * t :], labels.roll(2 * t, 1)[:, 2 * t :])
    too_near = LabelPropagation(context=1, radius=2, top=1, begin="window")
    last = list(too_near(feats, labels))[-1]
    assert not torch.allclose(last[:, 8:], labels.roll(8, 1)[:, 8:])


def test_memory_follows_the_context_not_the_sequence():
    """Of many frames only those of the context are held."""
    alive, most = [0], [0]

    class Counted:
        def __init__(self):
            alive[0] += 1
            most[0] = max(most[0], alive[0])

        def __del__(self):
            alive[0] -= 1

    def frames():
        for t in range(40):
            feature = features(1, 3, 4, seed=t)[0]
            feature.counted = Counted()
            yield feature

    labels = F.one_hot(torch.zeros(3, 4, dtype=torch.int64), 2).double()
    assert sum(1 for _ in LabelPropagation(context=4, radius=2)(frames(), labels)) == 40
    assert most[0] <= 4 + 3  # the context, the first, the present and the next


def test_whole_frame_matches_in_parts(monkeypatch):
    monkeypatch.setattr("lightning_vssl.nn.propagation._QUERIES", 7)
    first, second, query = features(3, 4, 5)
    found = match_whole(query, [first, second], top=4)
    flat = query.flatten(0, 1) @ torch.stack([first, second]).flatten(0, 2).t()
    assert torch.equal(found.place.flatten(0, 1), flat.topk(4).indices)


def test_refused():
    with pytest.raises(ValueError, match="begin must be window or whole"):
        LabelPropagation(begin="half")
    with pytest.raises(ValueError, match="early must be"):
        LabelPropagation(early="none")
    for name in ("context", "radius", "top", "temperature", "tile"):
        with pytest.raises(ValueError, match=f"{name} must be above 0"):
            LabelPropagation(**{name: 0})
