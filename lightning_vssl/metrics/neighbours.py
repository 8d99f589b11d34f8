"""Numbers from nearest neighbours: weighted k-NN accuracy and recall at k, by cosine similarity.

The k-NN vote is that of Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance
Discrimination", CVPR 2018, section 3.4. Recall at k is the number of the video retrieval of Xu et
al. (VCOP), CVPR 2019, section 4.3: a query counts when any of its k nearest gallery videos has its
class.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

_SIMILARITIES_AT_ONCE = 1 << 26  # float32: a quarter of a GiB


def _check_features(name: str, features: Tensor) -> None:
    if features.ndim != 2 or features.shape[0] == 0:
        raise ValueError(
            f"{name} must have shape (N, D) with at least one row, got {tuple(features.shape)}"
        )
    if not features.isfinite().all():
        raise ValueError(f"{name} holds NaN or infinite values: the backbone's output is broken")


def _check_labels(name: str, labels: Tensor, rows: int) -> None:
    if labels.shape != (rows,):
        raise ValueError(
            f"{name} must hold one class for each of the {rows} rows, got shape "
            f"{tuple(labels.shape)}"
        )


def _check_count(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def nearest(queries: Tensor, gallery: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Finds the k gallery rows most similar to each query by cosine.

    Args:
        queries: (Q, D). A row of zeros has similarity 0 with everything.
        gallery: (N, D).
        k: Neighbours per query; a k above N means the whole gallery.

    Returns:
        Similarities (Q, min(k, N)) in [-1, 1], falling along a row, and the gallery rows they
        belong to, (Q, min(k, N)) int64.

    Raises:
        ValueError: On wrong shapes, on values that are not finite, on k < 1.
    """
    _check_features("queries", queries)
    _check_features("gallery", gallery)
    _check_count("k", k)
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"queries have {queries.shape[1]} dimensions and the gallery {gallery.shape[1]}: both "
            "must come from the same backbone and pooling"
        )
    dtype = torch.promote_types(queries.dtype, torch.float32)
    bank = functional.normalize(gallery.to(dtype), dim=1)  # (N, D)
    k = min(k, bank.shape[0])
    rows = max(1, _SIMILARITIES_AT_ONCE // bank.shape[0])
    similarities, neighbours = [], []
    for start in range(0, queries.shape[0], rows):
        chunk = queries[start : start + rows].to(dtype)
        cosine = functional.normalize(chunk, dim=1) @ bank.T  # (rows, N)
        values, indices = cosine.topk(k, dim=1)
        similarities.append(values)
        neighbours.append(indices)
    return torch.cat(similarities), torch.cat(neighbours)


def knn_predict(
    queries: Tensor,
    gallery: Tensor,
    labels: Tensor,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> Tensor:
    """Classifies by a weighted vote of the k nearest neighbours.

    A neighbour with cosine similarity s votes for its class with weight exp(s / temperature).

    Args:
        queries: (Q, D).
        gallery: (N, D).
        labels: Class of each gallery row, (N,) int64 in [0, num_classes).
        num_classes: Number of classes.
        k: Neighbours that vote; a k above N means the whole gallery.
        temperature: Above 0. The paper's value is 0.07.

    Returns:
        Classes, (Q,) int64. Of classes with equal votes the lowest wins.

    Raises:
        ValueError: On wrong shapes, labels out of range, values that are not finite, k < 1 or
            temperature <= 0.
    """
    _check_labels("labels", labels, gallery.shape[0])
    if labels.numel() > 0 and not bool(((labels >= 0) & (labels < num_classes)).all()):
        raise ValueError(
            f"labels must lie in [0, {num_classes}), got {int(labels.min())} to "
            f"{int(labels.max())}; k-NN needs a labelled gallery"
        )
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    similarity, neighbour = nearest(queries, gallery, k)
    # Weights relative to the nearest neighbour: the same vote, and exp cannot overflow.
    weight = ((similarity - similarity[:, :1]) / temperature).exp()  # (Q, k)
    votes = weight.new_zeros(queries.shape[0], num_classes)
    votes.scatter_add_(1, labels[neighbour], weight)
    return votes.argmax(dim=1)


def recall_at_k(
    queries: Tensor,
    query_labels: Tensor,
    gallery: Tensor,
    gallery_labels: Tensor,
    ks: Sequence[int] = (1, 5, 10, 20, 50),
) -> dict[int, float]:
    """Share of queries with their class among the k nearest gallery rows by cosine.

    Args:
        queries: (Q, D).
        query_labels: (Q,) int64.
        gallery: (N, D).
        gallery_labels: (N,) int64.
        ks: The k to report; a k above N means the whole gallery.

    Returns:
        For each k the recall in [0, 1].

    Raises:
        ValueError: On wrong shapes, values that are not finite, an empty ``ks`` or a k < 1.
    """
    _check_labels("query_labels", query_labels, queries.shape[0])
    _check_labels("gallery_labels", gallery_labels, gallery.shape[0])
    if not ks:
        raise ValueError("ks must name at least one k")
    for k in ks:
        _check_count("k", k)
    _, neighbour = nearest(queries, gallery, max(ks))
    hit = gallery_labels[neighbour] == query_labels[:, None]  # (Q, k)
    return {k: float(hit[:, :k].any(dim=1).double().mean()) for k in ks}


def first_of_each(index: Tensor) -> Tensor:
    """Positions of the first occurrence of each value, in the order of occurrence.

    A distributed sampler repeats samples to give every rank as many, and a video that cannot be
    read is replaced by another: the row of the manifest tells which samples to count once.

    Args:
        index: (N,) int64.

    Returns:
        Positions, (M,) int64, rising, with M the number of different values.
    """
    order = torch.argsort(index, stable=True)
    ordered = index[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return order[first].sort().values


class _NeighbourMetric(Metric):
    """Collects features, labels and rows of a gallery and of queries, over all ranks."""

    is_differentiable = False
    full_state_update = False

    gallery_features: list[Tensor]
    gallery_labels: list[Tensor]
    gallery_index: list[Tensor]
    query_features: list[Tensor]
    query_labels: list[Tensor]
    query_index: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.videos = (0, 0)
        for part in ("gallery", "query"):
            for name in ("features", "labels", "index"):
                self.add_state(f"{part}_{name}", default=[], dist_reduce_fx="cat")

    def update(self, features: Tensor, labels: Tensor, index: Tensor, gallery: bool) -> None:
        """Adds videos.

        Args:
            features: (B, D).
            labels: (B,) int64.
            index: Row of the manifest, (B,) int64; a row seen before is not counted again.
            gallery: Whether the videos belong to the gallery or are queries. The rows of the two
                are counted apart.
        """
        _check_features("features", features)
        _check_labels("labels", labels, features.shape[0])
        _check_labels("index", index, features.shape[0])
        features = features.detach().float()
        if gallery:
            self.gallery_features.append(features)
            self.gallery_labels.append(labels)
            self.gallery_index.append(index)
        else:
            self.query_features.append(features)
            self.query_labels.append(labels)
            self.query_index.append(index)

    def _once(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries (Q, D), their labels, gallery (N, D), its labels: every row once."""
        gallery = _unique(
            "gallery videos", self.gallery_features, self.gallery_labels, self.gallery_index
        )
        queries = _unique("queries", self.query_features, self.query_labels, self.query_index)
        self.videos = (len(gallery[1]), len(queries[1]))
        return *queries, *gallery


def _unique(
    name: str, features: list[Tensor], labels: list[Tensor], index: list[Tensor]
) -> tuple[Tensor, Tensor]:
    # After a reduction over ranks torchmetrics leaves a tensor where the list was.
    if len(features) == 0:
        raise ValueError(f"no {name} were added: nothing to compare")
    keep = first_of_each(dim_zero_cat(index))
    return dim_zero_cat(features)[keep], dim_zero_cat(labels)[keep]


class NeighbourRecall(_NeighbourMetric):
    """Recall at k of queries in a gallery, by `recall_at_k`.

    ``update`` takes features (B, D), labels (B,), manifest rows (B,) and whether they belong to
    the gallery; ``compute`` gives a recall in [0, 1] per k. Rows seen twice count once.
    Then ``videos`` is how many gallery videos and queries were counted, over all ranks.

    Args:
        ks: The k to report.
    """

    def __init__(self, ks: Sequence[int] = (1, 5, 10, 20, 50)) -> None:
        super().__init__()
        if not ks:
            raise ValueError("ks must name at least one k")
        for k in ks:
            _check_count("k", k)
        self.ks = tuple(ks)

    def compute(self) -> dict[int, float]:
        """Recall in [0, 1] for each k."""
        queries, query_labels, gallery, gallery_labels = self._once()
        return recall_at_k(queries, query_labels, gallery, gallery_labels, self.ks)


class NeighbourAccuracy(_NeighbourMetric):
    """Top-1 accuracy of the weighted k-NN vote, by `knn_predict`.

    ``update`` takes features (B, D), labels (B,), manifest rows (B,) and whether they belong to
    the gallery; ``compute`` gives an accuracy in [0, 1] per k. Rows seen twice count once.
    Then ``videos`` is how many gallery videos and queries were counted, over all ranks.

    Args:
        ks: The k to report.
        temperature: Of the vote's weights, above 0.
    """

    def __init__(self, ks: Sequence[int] = (20,), temperature: float = 0.07) -> None:
        super().__init__()
        if not ks:
            raise ValueError("ks must name at least one k")
        for k in ks:
            _check_count("k", k)
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.ks = tuple(ks)
        self.temperature = temperature

    def compute(self) -> dict[int, float]:
        """Accuracy in [0, 1] for each k."""
        queries, query_labels, gallery, gallery_labels = self._once()
        classes = int(torch.cat([gallery_labels, query_labels]).max()) + 1
        accuracy = {}
        for k in self.ks:
            predicted = knn_predict(
                queries, gallery, gallery_labels, classes, k=k, temperature=self.temperature
            )
            accuracy[k] = float((predicted == query_labels).double().mean())
        return accuracy
