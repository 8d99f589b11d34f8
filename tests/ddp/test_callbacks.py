"""The callbacks that look at all ranks, in two gloo processes against one."""

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_vssl.nn.gather import rank, world_size
from tests.ddp.pool import TwoProcesses


def watch() -> dict[str, Tensor]:
    """Features, k-NN numbers, the probe after some steps, the monitor's numbers."""
    from lightning.pytorch import Trainer

    from lightning_vssl.callbacks.monitors import CollapseMonitor
    from lightning_vssl.callbacks.online import OnlineKNN, OnlineProbe, encode
    from tests.callbacks.parts import Clips, Data, TinyMethod

    trainer = Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, callbacks=[]
    )
    trainer.datamodule = Data()  # type: ignore[attr-defined]
    torch.manual_seed(0)
    method = TinyMethod()
    videos = Clips([9, 4, 4, 2, 6, 11, 8], unlabelled=[6])  # 7: the ranks' shares differ
    found = encode(trainer, method, DataLoader(videos, batch_size=2))
    one = encode(trainer, method, DataLoader(Clips([3])))  # nothing for rank 1
    knn = OnlineKNN(k=5).measure(trainer, method)

    probe = OnlineProbe(lr=0.02)
    probe.on_train_start(trainer, method)
    assert probe.probe is not None
    probe.probe.double()
    monitor = CollapseMonitor(size=32)
    noise = torch.Generator().manual_seed(1)
    accuracy = []
    for _ in range(5):
        x = torch.randn(8, 4, generator=noise, dtype=torch.float64)
        label = torch.randint(-1, 4, (8,), generator=noise)  # unlabelled ones fall unevenly
        rows = slice(rank() * 8 // world_size(), (rank() + 1) * 8 // world_size())
        accuracy.append(probe.step(x[rows], label[rows]))
        monitor._keep(x[rows])
    return {
        "features": found.features,
        "labels": found.labels,
        "rows": found.rows,
        "one": one.features,
        "knn": torch.tensor(list(knn.values())),
        "accuracy": torch.stack(accuracy),
        "monitor": torch.stack(monitor.measure()),
        **{name: x.detach() for name, x in probe.probe.state_dict().items()},
    }


def test_callbacks_see_all_ranks(two_processes: TwoProcesses) -> None:
    one = watch()
    assert one["rows"].tolist() == [2, 4, 8, 9, 11]
    for seen in two_processes(watch):
        assert isinstance(seen, dict)
        assert seen.keys() == one.keys()
        for name, expected in one.items():
            assert seen[name].dtype == expected.dtype
            tolerance = 1e-6 if expected.dtype == torch.float32 else 1e-12
            assert torch.allclose(seen[name], expected, rtol=tolerance, atol=tolerance), name
