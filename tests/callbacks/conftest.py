from collections.abc import Callable
from pathlib import Path

import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Trainer]:
    """A trainer on one CPU process that writes into ``tmp_path``."""

    def make(*callbacks: Callback, epochs: int = 2, log: bool = False, **extra: object) -> Trainer:
        logger: Logger | bool = CSVLogger(tmp_path, name="", version="") if log else False
        options: dict[str, object] = {
            "default_root_dir": tmp_path,
            "max_epochs": epochs,
            "accelerator": "cpu",
            "devices": 1,
            "logger": logger,
            "callbacks": list(callbacks),
            "enable_checkpointing": False,
            "enable_model_summary": False,
            "enable_progress_bar": False,
            "log_every_n_steps": 1,
            "limit_val_batches": 0,
            **extra,
        }
        return Trainer(**options)  # type: ignore[arg-type]

    return make
