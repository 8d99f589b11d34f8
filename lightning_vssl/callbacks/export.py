"""The backbone on disk as soon as a run is over."""

import tempfile
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lightning_vssl.backbones.weights import export


def _save(checkpoint: dict[str, object], file: Path) -> None:
    try:
        torch.save(checkpoint, file)
    except (RuntimeError, OSError) as error:  # torch reports a full disk as a RuntimeError
        raise OSError(
            f"the export could not be written in {file.parent.parent}: {error}"
        ) from error


class Export(Callback):
    """Writes the backbone into the run's folder at the end of the fit, as the command export does.

    The folder holds ``backbone.safetensors`` and ``config.json``, in the downstream form, and
    ``heads.safetensors`` where the method has heads that an evaluation uses. It appears whole or
    not at all; an earlier export of the run is replaced. Rank 0 writes.

    Args:
        folder: Name of the folder, inside of the run's folder unless absolute.

    Raises:
        ValueError: If ``folder`` is empty.
    """

    def __init__(self, folder: str = "export") -> None:
        super().__init__()
        if not folder:
            raise ValueError("folder must name a folder for the export; got an empty string.")
        self.folder = folder

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the folder and says where."""
        if not trainer.is_global_zero or bool(trainer.fast_dev_run):  # type: ignore[attr-defined]
            return
        out = Path(trainer.default_root_dir) / self.folder
        out.parent.mkdir(parents=True, exist_ok=True)
        checkpoint: dict[str, object] = {
            "epoch": trainer.current_epoch,
            "global_step": trainer.global_step,
            "state_dict": pl_module.state_dict(),
        }
        pl_module.on_save_checkpoint(checkpoint)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=out.parent) as scratch:
            file = Path(scratch) / "last.ckpt"
            _save(checkpoint, file)
            report = export(file, out, overwrite=True)
        rank_zero_info(
            f"exported {report.class_path} ({report.parameters / 1e6:.2f} M parameters) of"
            f" {report.method}: {report.folder}"
        )
