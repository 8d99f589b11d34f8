import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from lightning_vssl.metrics import neighbours
from lightning_vssl.metrics.neighbours import (
    NeighbourAccuracy,
    NeighbourRecall,
    first_of_each,
    knn_predict,
    nearest,
    recall_at_k,
)


def clusters(seed, rows, dim=12, classes=5, noise=1.2):
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, dim))
    labels = generator.integers(classes, size=rows)
    features = centres[labels] + noise * generator.normal(size=(rows, dim))
    return torch.from_numpy(features), torch.from_numpy(labels)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (7, 0.07), (20, 0.5), (400, 0.07)])
def test_knn_equals_scikit_learn(k, temperature):
    gallery, labels = clusters(0, 120)
    queries, _ = clusters(1, 70)
    reference = KNeighborsClassifier(
        n_neighbors=min(k, 120),
        metric="cosine",
        weights=lambda distance: np.exp((1 - distance) / temperature),
    ).fit(gallery.numpy(), labels.numpy())
    predicted = knn_predict(queries, gallery, labels, 5, k=k, temperature=temperature)
    assert predicted.tolist() == reference.predict(queries.numpy()).tolist()
    assert len(set(predicted.tolist())) > 1


def test_recall_equals_a_slow_loop():
    gallery, gallery_labels = clusters(0, 60, classes=20)
    queries, query_labels = clusters(1, 40, classes=20)
    ks = (1, 3, 10, 500)
    g, q = gallery.numpy(), queries.numpy()
    hits = dict.fromkeys(ks, 0)
    for row, label in zip(q, query_labels.tolist(), strict=True):
        cosine = [row @ other / np.linalg.norm(row) / np.linalg.norm(other) for other in g]
        order = np.argsort(cosine)[::-1]
        for k in ks:
            hits[k] += any(int(gallery_labels[n]) == label for n in order[:k])
    measured = recall_at_k(queries, query_labels, gallery, gallery_labels, ks)
    assert measured == {k: pytest.approx(hits[k] / 40) for k in ks}
    assert 0 < measured[1] < measured[3] < measured[10] < 1


def test_a_small_chunk_changes_nothing(monkeypatch):
    gallery, _ = clusters(0, 50)
    queries, _ = clusters(1, 33)
    whole = nearest(queries, gallery, 6)
    monkeypatch.setattr(neighbours, "_SIMILARITIES_AT_ONCE", 4 * 50)
    parts = nearest(queries, gallery, 6)
    torch.testing.assert_close(parts[0], whole[0])
    assert torch.equal(parts[1], whole[1])


def test_a_low_temperature_does_not_overflow():
    gallery = torch.eye(3)
    predicted = knn_predict(gallery, gallery, torch.tensor([2, 0, 1]), 3, k=3, temperature=1e-4)
    assert predicted.tolist() == [2, 0, 1]


def test_half_precision_features_are_compared_in_float32():
    gallery, _ = clusters(0, 30)
    similarity, _ = nearest(gallery.half(), gallery.half(), 1)
    assert similarity.dtype == torch.float32
    torch.testing.assert_close(similarity, torch.ones(30, 1))


def test_first_of_each_keeps_the_order_of_occurrence():
    assert first_of_each(torch.tensor([4, 1, 4, 0, 1, 7])).tolist() == [0, 1, 3, 5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": torch.zeros(4)}, r"queries must have shape \(N, D\)"),
        ({"gallery": torch.full((6, 3), torch.nan)}, "gallery holds NaN"),
        ({"queries": torch.zeros(4, 2)}, "queries have 2 dimensions and the gallery 3"),
        ({"labels": torch.full((6,), -1)}, r"labels must lie in \[0, 2\), got -1"),
        ({"labels": torch.zeros(5, dtype=torch.int64)}, "one class for each of the 6 rows"),
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"temperature": 0.0}, "temperature must be above 0"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    good = {
        "queries": torch.ones(4, 3),
        "gallery": torch.ones(6, 3),
        "labels": torch.zeros(6, dtype=torch.int64),
        "num_classes": 2,
    }
    with pytest.raises(ValueError, match=message):
        knn_predict(**{**good, **change})


def feed(metric, features, labels, index, gallery):
    for start in range(0, len(labels), 16):
        part = slice(start, start + 16)
        metric.update(features[part], labels[part], index[part], gallery=gallery)


def test_a_row_that_comes_twice_counts_once():
    gallery, gallery_labels = clusters(0, 40)
    queries, query_labels = clusters(1, 24)
    # As a distributed sampler pads: the first rows come again. Two ranks interleaved.
    again = torch.cat([torch.arange(24), torch.arange(9)])
    recall, accuracy = NeighbourRecall((1, 4)), NeighbourAccuracy((1, 9))
    for metric in (recall, accuracy):
        feed(metric, gallery.float(), gallery_labels, torch.arange(40), True)
        feed(metric, gallery.float(), gallery_labels, torch.arange(40), True)
        feed(metric, queries[again].float(), query_labels[again], again, False)
    expected = recall_at_k(queries, query_labels, gallery, gallery_labels, (1, 4))
    assert recall.compute() == pytest.approx(expected)
    counted_twice = recall_at_k(queries[again], query_labels[again], gallery, gallery_labels, (1,))
    assert counted_twice[1] != pytest.approx(expected[1])
    predicted = knn_predict(queries, gallery, gallery_labels, 5, k=9)
    assert accuracy.compute()[9] == pytest.approx(
        (predicted == query_labels).double().mean().item()
    )


def test_gallery_rows_and_query_rows_are_counted_apart():
    metric = NeighbourRecall((1,))
    metric.update(torch.eye(2), torch.tensor([0, 1]), torch.tensor([0, 1]), gallery=True)
    metric.update(torch.eye(2), torch.tensor([0, 1]), torch.tensor([0, 1]), gallery=False)
    assert metric.compute() == {1: 1.0}
    assert metric.videos == (2, 2)


def test_a_metric_without_queries_says_so():
    metric = NeighbourRecall((1,))
    metric.update(torch.eye(2), torch.tensor([0, 1]), torch.tensor([0, 1]), gallery=True)
    with pytest.raises(ValueError, match="no queries were added"):
        metric.compute()
