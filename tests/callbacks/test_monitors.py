import math
from collections.abc import Callable

import pytest
import torch
from lightning.pytorch import Trainer

from lightning_vssl.callbacks.monitors import CollapseMonitor, feature_std, rankme
from tests.callbacks.parts import Data, TinyMethod


def test_identity_covariance() -> None:
    eye = torch.eye(8)
    spread = torch.cat([eye, -eye])  # mean 0, covariance proportional to the identity
    assert rankme(spread).item() == pytest.approx(8, abs=1e-9)
    assert feature_std(spread).item() == pytest.approx(1, abs=1e-9)


def test_collapsed() -> None:
    same = torch.randn(1, 8, generator=torch.Generator().manual_seed(0)).expand(50, 8)
    assert rankme(same).item() == pytest.approx(1, abs=1e-4)
    assert feature_std(same).item() == pytest.approx(0, abs=1e-7)
    scaled = same * torch.linspace(0.1, 9, 50)[:, None]  # one direction, other lengths
    assert rankme(scaled).item() == pytest.approx(1, abs=1e-4)
    assert feature_std(scaled).item() == pytest.approx(0, abs=1e-6)


def test_half_the_dimensions_used() -> None:
    eye = torch.eye(8)[:4]
    assert rankme(torch.cat([eye, -eye])).item() == pytest.approx(4, abs=1e-6)


@pytest.mark.parametrize("shape", [(40, 6), (6, 40), (7, 7)])
def test_rankme_against_the_singular_values(shape: tuple[int, int]) -> None:
    z = torch.randn(shape, generator=torch.Generator().manual_seed(1)) + 0.5
    singular = torch.linalg.svdvals(z.double()).tolist()
    share = [s / math.fsum(singular) for s in singular]
    expected = math.exp(-math.fsum(p * math.log(p) for p in share))
    assert rankme(z).item() == pytest.approx(expected, rel=1e-9)


def test_std_of_many_gaussian_directions_is_one() -> None:
    z = torch.randn(20_000, 64, generator=torch.Generator().manual_seed(2))
    assert feature_std(z).item() == pytest.approx(1, abs=0.01)


def test_zeros_are_a_collapse_not_an_error() -> None:
    assert rankme(torch.zeros(4, 3)).item() == 1
    assert feature_std(torch.zeros(4, 3)).item() == 0


def test_buffer_rolls() -> None:
    monitor = CollapseMonitor(size=5)
    rows = torch.randn(23, 3, generator=torch.Generator().manual_seed(3))
    for part in rows.split([2, 2, 9, 3, 3, 1, 3]):
        monitor._keep(part)
    std, effective_rank = monitor.measure()
    assert std.item() == pytest.approx(feature_std(rows[-5:]).item(), rel=1e-6)
    assert effective_rank.item() == pytest.approx(rankme(rows[-5:]).item(), rel=1e-6)


def test_a_part_full_buffer_counts_what_it_has() -> None:
    monitor = CollapseMonitor(size=50)
    rows = torch.randn(7, 3)
    monitor._keep(rows)
    assert monitor.measure()[1].item() == pytest.approx(rankme(rows).item(), rel=1e-6)


def test_nan_is_shown_as_nan() -> None:
    monitor = CollapseMonitor(size=4)
    monitor._keep(torch.tensor([[1.0, torch.nan], [1.0, 2.0]]))
    assert all(value.isnan() for value in monitor.measure())


def test_logged_and_warned_once(make_trainer: Callable[..., Trainer]) -> None:
    monitor = CollapseMonitor(size=8, every_n_steps=2, least_std=10.0)
    trainer = make_trainer(monitor, epochs=2)
    with pytest.warns(UserWarning, match=r"may have collapsed at step 2: std 0\.\d+") as seen:
        trainer.fit(TinyMethod(), datamodule=Data())
    assert sum("may have collapsed" in str(w.message) for w in seen) == 1
    assert 0 < trainer.callback_metrics["monitor/feature_std"] <= 1
    assert 1 <= trainer.callback_metrics["monitor/rankme"] <= 4
    assert monitor.state_dict() == {"warned": True}
    other = CollapseMonitor()
    other.load_state_dict(monitor.state_dict())
    assert other.warned


def test_says_what_is_missing(make_trainer: Callable[..., Trainer]) -> None:
    monitor = CollapseMonitor()
    with pytest.raises(ValueError, match="TinyMethod does not return it"):
        monitor.on_train_batch_end(make_trainer(), TinyMethod(), torch.zeros(()), {}, 0)
    with pytest.raises(ValueError, match="No embedding"):
        monitor.measure()
    with pytest.raises(ValueError, match="size=0"):
        CollapseMonitor(size=0)
