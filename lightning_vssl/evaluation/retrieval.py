"""Evaluations without training: video retrieval and k-NN, from a gallery of training videos.

Xu et al., "Self-supervised Spatiotemporal Learning via Video Clip Order Prediction" (VCOP), CVPR
2019, section 4.3, is the template; Wang et al. (CtP), CVPR 2021, supplement A, RSPNet and PreViTS
follow it with other features. The k-NN vote is that of Wu et al., CVPR 2018.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_vssl.backbones.base import Backbone
from lightning_vssl.evaluation.base import Batch, Evaluation, pooled
from lightning_vssl.metrics.neighbours import NeighbourAccuracy, NeighbourRecall

Pool = Literal["adaptive_max", "adaptive_avg", "max", "gap", "space_max"]

GRID = (2, 3, 3)


def pool_maps(maps: Tensor, pool: Pool) -> Tensor:
    """Turns the last stage's maps into the vectors that are compared.

    Args:
        maps: (..., C, T, H, W).
        pool: ``adaptive_max`` and ``adaptive_avg``: adaptive pooling to 2 x 3 x 3 (CtP, supplement
            A); ``max``: windows and strides (1, 2, 2), VCOP's own, which gives 2 x 3 x 3 from 16
            frames of 112 pixels; ``gap``: global average (RSPNet's and PreViTS's released code);
            ``space_max``: maximum over space (RSPNet, supplement B), then the mean over the steps
            of time that are left, of which it says nothing.

    Returns:
        (..., D) in float32, or in the maps' own type where that is wider. D is C for ``gap`` and
        ``space_max``, and 18 C for the adaptive ones.

    Raises:
        ValueError: If the pooling is unknown, or the map is too small for ``max``.
    """
    if pool == "gap":
        return pooled(maps)
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
    if pool == "space_max":
        return maps.amax(dim=(-2, -1)).mean(dim=-1)  # (..., C)
    flat = maps.reshape(-1, *maps.shape[-4:])  # (N, C, T, H, W)
    if pool == "max" and min(maps.shape[-2:]) < 2:
        raise ValueError(
            f"pool=max needs a map of at least 2 x 2, got {tuple(maps.shape[-2:])}: use "
            "adaptive_max, or larger clips"
        )
    if pool == "adaptive_max":
        made = functional.adaptive_max_pool3d(flat, GRID)
    elif pool == "adaptive_avg":
        made = functional.adaptive_avg_pool3d(flat, GRID)
    elif pool == "max":
        made = functional.max_pool3d(flat, (1, 2, 2))
    else:
        raise ValueError(f"pool must be one of {', '.join(get_args(Pool))}, got {pool!r}")
    return made.reshape(*maps.shape[:-4], -1)  # (..., D)


class Neighbours(Evaluation):
    """Shared by `Retrieval` and `KNN`: one vector per video, compared with a gallery's.

    Only ``test`` runs it, over two loaders: the gallery, then the queries (``gallery: true`` of the
    data modules). The vector of a video is the mean of its clips' vectors.
    """

    def __init__(
        self,
        *,
        backbone: Backbone | None,
        weights: str | None,
        pool: Pool,
        normalise_clips: bool,
        metric: NeighbourAccuracy | NeighbourRecall,
        view: nn.Module | None,
        clips_at_once: int | None,
        paper: dict[str, float] | None,
    ) -> None:
        super().__init__(
            backbone=backbone,
            weights=weights,
            view=view,
            augment=None,
            clips_at_once=clips_at_once,
            paper=paper,
        )
        if pool not in get_args(Pool):
            raise ValueError(f"pool must be one of {', '.join(get_args(Pool))}, got {pool!r}")
        self.pool: Pool = pool
        self.normalise_clips = normalise_clips
        self.metric = metric
        self.backbone.eval().requires_grad_(False)

    @abstractmethod
    def results(self) -> dict[str, float]:
        """The numbers, in percent, from `metric` once all videos are in."""

    def features(self, views: Tensor) -> Tensor:
        """Vectors of videos.

        Args:
            views: Normalised clips, (B, V, 3, T, H, W).

        Returns:
            (B, D).
        """
        vectors = pool_maps(self.maps(views), self.pool)  # (B, V, D)
        if self.normalise_clips:
            vectors = functional.normalize(vectors, dim=-1)
        return vectors.mean(dim=1)

    def on_fit_start(self) -> None:
        """There is nothing to train.

        Raises:
            ValueError: Always.
        """
        raise ValueError(f"{type(self).__name__} trains nothing: run test, not fit")

    def on_load_checkpoint(self, checkpoint: Mapping[str, object]) -> None:
        """There is nothing to restore.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            f"{type(self).__name__} restores nothing from --ckpt_path: what was pretrained goes to "
            "--model.weights"
        )

    def on_test_start(self) -> None:
        """Checks that there are a gallery and queries.

        Raises:
            ValueError: If there is another number of loaders.
        """
        loaders = len(self.trainer.num_test_batches)
        if loaders != 2:
            raise ValueError(
                f"{type(self).__name__} compares test videos with a gallery of training videos: it "
                f"needs two test loaders, gallery and queries, and got {loaders}; set gallery: "
                "true in the data module"
            )

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Adds the videos of a batch: of the gallery from loader 0, queries from loader 1."""
        self.note_input(batch)
        labels = self.labels(batch)
        self.metric.update(
            self.features(batch["views"]), labels, batch["index"], gallery=dataloader_idx == 0
        )

    def on_test_epoch_end(self) -> None:
        """Compares, logs and writes the result."""
        results = self.results()
        gallery, queries = self.metric.videos
        self.metric.reset()
        self.log_dict(
            {f"test/{name}": value for name, value in results.items()}, rank_zero_only=True
        )
        self.report("test", results, {"videos": {"gallery": gallery, "queries": queries}})

    def protocol(self) -> dict[str, object]:
        """The arguments that make up the protocol."""
        return {
            **super().protocol(),
            "pool": self.pool,
            "normalise_clips": self.normalise_clips,
            "clips": "mean of the clips' vectors",
            "similarity": "cosine",
        }


class Retrieval(Neighbours):
    """Video retrieval: is a training video of the same class among the k nearest?

    VCOP's protocol as CtP uses it (supplement A): the last stage's map is pooled to 2 x 3 x 3, the
    clips' vectors are averaged as they are, and videos are compared by cosine. Results are
    ``recall@k`` in percent.

    What the papers leave open, or do otherwise:

    - CtP says "adaptive pooling"; VCOP takes maxima, so ``adaptive_max`` is the default.
    - VCOP feeds values in [0, 1] without mean and deviation: ``view: Normalise`` with mean 0 and
      deviation 1. CtP does not say; the default is the backbone's own pixels.
    - RSPNet, which PreViTS follows, says maxima over space (``pool: space_max``); its released code
      averages over everything (``pool: gap``). Its gallery goes through the training augmentation;
      here it never does.
    - VCOP and RSPNet lose the last incomplete batch; here every video counts, once.

    Args:
        backbone: The network, or None to take the one that ``weights`` describes.
        weights: Path of what was pretrained, or None for the untouched network.
        pool: How a map becomes a vector; see `pool_maps`.
        normalise_clips: Whether a clip's vector is brought to length 1 before the mean over clips.
        ks: The k to report.
        view: Makes the views; None normalises as the backbone wants its pixels.
        clips_at_once: Clips per forward pass; None takes all of the batch.
        paper: The paper's numbers, for instance ``{"recall@1": 29.0}``.

    Raises:
        ValueError: If ``pool`` is unknown, or both ``backbone`` and ``weights`` are None.
    """

    def __init__(
        self,
        *,
        backbone: Backbone | None = None,
        weights: str | None = None,
        pool: Pool = "adaptive_max",
        normalise_clips: bool = False,
        ks: tuple[int, ...] = (1, 5, 10, 20, 50),
        view: nn.Module | None = None,
        clips_at_once: int | None = None,
        paper: dict[str, float] | None = None,
    ) -> None:
        super().__init__(
            backbone=backbone,
            weights=weights,
            pool=pool,
            normalise_clips=normalise_clips,
            metric=NeighbourRecall(ks),
            view=view,
            clips_at_once=clips_at_once,
            paper=paper,
        )

    def results(self) -> dict[str, float]:
        """``recall@k`` in percent."""
        return {f"recall@{k}": 100 * recall for k, recall in self.metric.compute().items()}


class KNN(Neighbours):
    """Weighted k-NN classification of test videos by training videos.

    Results are ``knn_top1`` in percent for the first of ``ks``, and ``knn_top1@k`` for the others:
    the k that is reported is fixed beforehand, never picked by the result.

    Args:
        backbone: The network, or None to take the one that ``weights`` describes.
        weights: Path of what was pretrained, or None for the untouched network.
        ks: Neighbours that vote; the first is the number to report.
        temperature: Of the vote's weights exp(cosine / temperature).
        pool: How a map becomes a vector; see `pool_maps`.
        normalise_clips: Whether a clip's vector is brought to length 1 before the mean over clips.
        view: Makes the views; None normalises as the backbone wants its pixels.
        clips_at_once: Clips per forward pass; None takes all of the batch.
        paper: The paper's numbers, for instance ``{"knn_top1": 40.0}``.

    Raises:
        ValueError: If ``temperature`` is not above 0, ``pool`` is unknown, or both ``backbone`` and
            ``weights`` are None.
    """

    def __init__(
        self,
        *,
        backbone: Backbone | None = None,
        weights: str | None = None,
        ks: tuple[int, ...] = (20,),
        temperature: float = 0.07,
        pool: Pool = "gap",
        normalise_clips: bool = False,
        view: nn.Module | None = None,
        clips_at_once: int | None = None,
        paper: dict[str, float] | None = None,
    ) -> None:
        super().__init__(
            backbone=backbone,
            weights=weights,
            pool=pool,
            normalise_clips=normalise_clips,
            metric=NeighbourAccuracy(ks, temperature),
            view=view,
            clips_at_once=clips_at_once,
            paper=paper,
        )
        self.ks = tuple(ks)
        self.temperature = temperature

    def results(self) -> dict[str, float]:
        """``knn_top1`` in percent."""
        accuracy = self.metric.compute()
        first, *others = self.ks
        named = {"knn_top1": accuracy[first], **{f"knn_top1@{k}": accuracy[k] for k in others}}
        return {name: 100 * value for name, value in named.items()}

    def protocol(self) -> dict[str, object]:
        """The arguments that make up the protocol."""
        return {**super().protocol(), "k": self.ks[0], "temperature": self.temperature}
