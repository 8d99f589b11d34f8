import json

import numpy as np
import pytest
import torch

from lightning_vssl import __version__
from lightning_vssl.evaluation.retrieval import KNN, Retrieval, pool_maps
from tests.evaluation.small import OneLayer, Tensors, trainer, videos


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def slow_vector(backbone, sample):
    """A video's vector by loops over clips, channels and cells, in float64."""
    weight = backbone.conv.weight.detach().double().numpy()
    clips = sample["video"].double().numpy() / 255 / np.sqrt(1 + backbone.norm.eps)
    vectors = []
    for clip in clips:  # (T, 3, H, W)
        cells = np.zeros((6, 2, 2, 2))
        for o, t, y, x in np.ndindex(cells.shape):
            window = clip[t, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
            cells[o, t, y, x] = (weight[o, :, 0] * window).sum()
        # From 2 cells to 3: the pooled windows are {0}, {0, 1}, {1}.
        windows = [slice(0, 1), slice(0, 2), slice(1, 2)]
        pooled = [
            cells[o, t, windows[y], windows[x]].max() for o, t, y, x in np.ndindex(6, 2, 3, 3)
        ]
        vectors.append(np.array(pooled))
    return np.mean(vectors, axis=0)


def test_retrieval_equals_a_slow_reference(tmp_path):
    shades = torch.Generator().manual_seed(5)
    gallery, queries = videos(4, seed=1), videos(3, seed=2, first=7)
    for sample in (*gallery, *queries):  # dim and noisy: some queries miss
        noise = torch.randint(0, 90, sample["video"].shape, generator=shades)
        sample["video"] = (sample["video"] * 0.1 + noise).to(torch.uint8)
    backbone = OneLayer()
    g = [slow_vector(backbone, sample) for sample in gallery]
    expected = dict.fromkeys((1, 3, 50), 0.0)
    for sample in queries:
        query = slow_vector(backbone, sample)
        order = np.argsort([-cosine(query, other) for other in g], kind="stable")
        for k in expected:
            hit = any(gallery[n]["label"] == sample["label"] for n in order[:k])
            expected[k] += 100 * hit / len(queries)
    assert 0 < expected[1] < expected[3] <= 100

    module = Retrieval(
        backbone=backbone, ks=(1, 3, 50), clips_at_once=3, paper={"recall@1": 29.0, "recall@3": 40}
    )
    # As a distributed sampler pads: the first queries come again.
    data = Tensors(test=[*queries, *queries[:5]], gallery=gallery)
    logged, _ = trainer(tmp_path).test(module, data, verbose=False)
    assert logged == {f"test/recall@{k}": pytest.approx(v) for k, v in expected.items()}

    result = json.loads((tmp_path / "result.json").read_text())
    assert result["results"] == {f"recall@{k}": pytest.approx(v) for k, v in expected.items()}
    assert result["videos"] == {"gallery": 24, "queries": 18}
    assert (result["evaluation"], result["method"], result["weights"]) == (
        "Retrieval",
        "untouched",
        None,
    )
    assert result["paper"] == {"recall@1": 29.0, "recall@3": 40}
    assert result["library"] == __version__
    assert result["complete"] is True
    assert result["protocol"]["view"] == {
        "class": "Normalise",
        "mean": [0.0, 0.0, 0.0],
        "std": [1.0, 1.0, 1.0],
    }
    assert result["protocol"]["pool"] == "adaptive_max"
    assert result["protocol"]["input"] == {
        "clips": 2,
        "frames": 2,
        "height": 4,
        "width": 4,
        "first_to_last_frame_seconds": 0.5,
    }
    assert result["protocol"]["data"]["batch_size"] == 8
    assert list(tmp_path.iterdir()) == [tmp_path / "result.json"]


def test_knn_names_the_class_of_separable_videos_and_none_of_permuted_ones(tmp_path, capsys):
    gallery, queries = videos(4, seed=1), videos(2, seed=2)
    module = KNN(backbone=OneLayer(), ks=(3, 1), paper={"knn_top1": 50.0})
    logged, _ = trainer(tmp_path).test(
        module, Tensors(test=queries, gallery=gallery), verbose=False
    )
    assert logged == {"test/knn_top1": 100.0, "test/knn_top1@1": 100.0}
    printed = capsys.readouterr().out
    assert "knn_top1" in printed
    assert "100.0" in printed
    assert "paper" in printed

    for sample in gallery:
        sample["label"] = (sample["label"] + 1) % 6
    logged, _ = trainer(tmp_path, limit_test_batches=1).test(
        module, Tensors(test=queries, gallery=gallery), verbose=False
    )
    assert logged["test/knn_top1"] == 0.0
    assert json.loads((tmp_path / "result.json").read_text())["complete"] is False


def test_without_gallery_or_labels_the_error_says_what_to_do(tmp_path):
    module = Retrieval(backbone=OneLayer())
    with pytest.raises(ValueError, match="gallery: true in the data module"):
        trainer(tmp_path).test(module, Tensors(test=videos(1)), verbose=False)
    unlabelled = [{k: v for k, v in s.items() if k != "label"} for s in videos(1)]
    with pytest.raises(ValueError, match="needs labelled videos"):
        trainer(tmp_path).test(module, Tensors(test=videos(1), gallery=unlabelled), verbose=False)


def test_poolings_by_hand():
    maps = torch.arange(2 * 1 * 2 * 7 * 7, dtype=torch.float32).reshape(2, 1, 2, 7, 7)
    frame = maps[0, 0, 0]
    assert pool_maps(maps, "gap")[0].tolist() == [maps[0].mean().item()]
    # VCOP: windows and strides of 2, the last row and column left out.
    vcop = pool_maps(maps, "max")
    assert vcop.shape == (2, 18)
    assert vcop[0, :9].tolist() == [frame[r, c].item() for r in (1, 3, 5) for c in (1, 3, 5)]
    # Adaptive: windows of 3, 3 and 3 cells that overlap, and nothing left out.
    adaptive = pool_maps(maps, "adaptive_max")
    assert adaptive[0, :9].tolist() == [frame[r, c].item() for r in (2, 4, 6) for c in (2, 4, 6)]
    average = pool_maps(maps, "adaptive_avg")
    assert average[0, 0].item() == pytest.approx(frame[:3, :3].mean().item())
    assert pool_maps(maps[:, None], "adaptive_avg").shape == (2, 1, 18)
    # RSPNet: the last cell is the largest of its frame; the mean of the two frames'.
    assert pool_maps(maps, "space_max").tolist() == [[(48 + 97) / 2], [(146 + 195) / 2]]
    assert pool_maps(-maps, "space_max").tolist() == [[-49 / 2], [-(98 + 147) / 2]]
    assert pool_maps(maps[:, None], "space_max").shape == (2, 1, 1)
    for pool in ("gap", "space_max"):
        assert pool_maps(maps.half(), pool).dtype == torch.float32
    with pytest.raises(ValueError, match="at least 2 x 2"):
        pool_maps(maps[..., :1], "max")


def test_clips_are_averaged_as_they_are_unless_told():
    class Given(torch.nn.Module):
        dims = 3

        def forward(self, x):
            return x

    views = torch.zeros(1, 2, 2, 1, 1, 1)  # two clips of two "channels"
    views[0, 0, :, 0, 0, 0] = torch.tensor([10.0, 0.0])
    views[0, 1, :, 0, 0, 0] = torch.tensor([0.0, 1.0])
    module = Retrieval(backbone=OneLayer(), pool="gap")
    module.backbone = Given()
    assert module.features(views)[0].tolist() == [5.0, 0.5]
    module.normalise_clips = True
    assert module.features(views)[0].tolist() == [0.5, 0.5]


def test_an_image_network_sees_frame_by_frame():
    views = torch.rand(2, 2, 3, 5, 4, 4)
    image, clip = Retrieval(backbone=OneLayer(dims=2)), Retrieval(backbone=OneLayer())
    torch.testing.assert_close(image.maps(views), clip.maps(views))


def test_it_refuses_what_makes_no_sense(tmp_path):
    with pytest.raises(ValueError, match="got neither"):
        Retrieval()
    with pytest.raises(ValueError, match="clips_at_once must be at least 1"):
        KNN(backbone=OneLayer(), clips_at_once=0)
    with pytest.raises(ValueError, match="pool must be one of"):
        KNN(backbone=OneLayer(), pool="mean")
    with pytest.raises(FileNotFoundError):
        Retrieval(weights=str(tmp_path / "missing"))
