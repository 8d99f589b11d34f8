import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from lightning_vssl.backbones.weights import load_backbone
from lightning_vssl.callbacks.export import Export
from tests.callbacks.parts import Data, TinyMethod


def test_the_export_is_the_trained_backbone(
    make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    for epochs in (1, 2):  # the second run replaces the first one's export
        method = TinyMethod()
        make_trainer(Export(), epochs=epochs).fit(method, datamodule=Data())
        loaded = load_backbone(tmp_path / "export")
        for name, value in method.backbone.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value)
        config = json.loads((tmp_path / "export" / "config.json").read_text())
        assert config["global_step"] == 6 * epochs
        assert config["method"] == "TinyMethod"
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_full_disk_is_named(
    make_trainer: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(checkpoint: object, file: Path) -> None:
        file.write_bytes(b"part")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lightning_vssl.callbacks.export.torch.save", full)
    with pytest.raises(OSError, match=r"export could not be written in .*No space left"):
        make_trainer(Export(), epochs=1).fit(TinyMethod(), datamodule=Data())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_must_be_named() -> None:
    with pytest.raises(ValueError, match="empty"):
        Export("")
