"""Batches of pairs: their order, going on in the middle of an epoch, and what is tested."""

import pytest
import torch

from lightning_vssl.data.sequences import TrackedSequence
from lightning_vssl.datamodules.sequences import SequenceDataModule
from lightning_vssl.datamodules.tracking_pairs import TrackingPairs
from tests.data.test_pairs import sequence


class Moving(SequenceDataModule):
    """Sequences of one moving square, drawn when they are first read."""

    def names(self, split):
        return [f"{split}{n}" for n in range(3)]

    def read(self, split, name):
        return sequence(self.root, name, frames=4)


def made(folder, **options):
    folder.mkdir(exist_ok=True)
    settings = {"samples": 6, "batch_size": 2, "exemplar": 31, "search": 63, **options}
    data = TrackingPairs(Moving(folder), **settings)
    data.setup("fit")
    return data


def order(loader):
    return [key for batch in loader for key in batch["key"].tolist()]


def test_batches_have_the_contracts_shapes(tmp_path):
    batch = next(iter(made(tmp_path / "a", neighbours=1).train_dataloader()))
    assert batch["video"].shape == (2, 2, 3, 3, 47, 47)
    assert batch["video"].dtype == torch.uint8
    assert batch["boxes"].shape == (2, 2, 1, 1, 4)
    assert batch["key"].dtype == batch["index"].dtype == torch.int64


def test_order_is_the_seeds_and_goes_on_where_a_run_stood(tmp_path):
    whole = order(made(tmp_path / "a").train_dataloader())
    assert len(set(whole)) == 6
    assert order(made(tmp_path / "b").train_dataloader()) == whole
    assert order(made(tmp_path / "c", seed=1).train_dataloader()) != whole
    resumed = made(tmp_path / "d")
    resumed.load_state_dict({"epoch": 0, "samples": 4})
    loader = resumed.train_dataloader()
    assert order(loader) == whole[4:]
    loader.sampler.set_epoch(1)
    assert len(order(loader)) == 6  # the next epoch is whole


def test_workers_give_the_same(tmp_path):
    one = made(tmp_path / "a").train_dataloader()
    many = made(tmp_path / "b", num_workers=2).train_dataloader()
    for a, b in zip(one, many, strict=True):
        assert torch.equal(a["video"], b["video"])


@pytest.mark.parametrize("size", [0, 7])
def test_batch_that_does_not_fit(tmp_path, size):
    with pytest.raises(ValueError, match=f"batch_size.*{size}"):
        made(tmp_path / "a", batch_size=size).train_dataloader()


def test_tests_walk_the_other_data_set(tmp_path):
    (tmp_path / "other").mkdir()
    data = TrackingPairs(Moving(tmp_path), Moving(tmp_path / "other"))
    data.setup("test")
    walked = list(data.test_dataloader())
    assert [one.name for one in walked] == ["test0", "test1", "test2"]
    assert all(isinstance(one, TrackedSequence) for one in walked)
    assert data.test == {"class": "Moving", "root": str(tmp_path / "other"), "split": "test"}
    with pytest.raises(TypeError, match="Moving keeps no result files"):
        data.track_files(tmp_path)
