"""The smallest run that the callbacks can watch: clips in memory, one convolution."""

from collections.abc import Sequence

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_vssl.backbones.base import Backbone


class TinyBackbone(Backbone):
    """One convolution with batch norm."""

    def __init__(self, width: int = 4, dims: int = 3) -> None:
        super().__init__(
            channels={"stem": width},
            strides={"stem": (2 if dims == 3 else 1, 2)},
            init_args={"width": width, "dims": dims},
            dims=3 if dims == 3 else 2,
        )
        conv, norm = (nn.Conv3d, nn.BatchNorm3d) if dims == 3 else (nn.Conv2d, nn.BatchNorm2d)
        self.conv = conv(3, width, 3, stride=2, padding=1)
        self.norm = norm(width)

    def stage(self, name: str, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(x)).relu()
        return out


class PlainView(nn.Module):
    """Pixels in [-1, 1]."""

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        views = batch["video"].transpose(2, 3).float() / 127.5 - 1  # (B, V, 3, T, H, W)
        return {**batch, "views": views}


class Clips(Dataset[dict[str, Tensor]]):
    """Noise whose brightness tells the label; `rows` are the manifest rows delivered."""

    def __init__(
        self,
        rows: Sequence[int],
        clips: int = 2,
        classes: int = 4,
        labels: bool = True,
        unlabelled: Sequence[int] = (),
        seed: int = 0,
    ) -> None:
        self.rows, self.clips, self.classes = list(rows), clips, classes
        self.labels, self.unlabelled, self.seed = labels, unlabelled, seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        row = self.rows[number]
        noise = torch.Generator().manual_seed(1000 * self.seed + row)
        video = torch.randint(0, 80, (self.clips, 4, 3, 8, 8), generator=noise)
        label = row % self.classes
        sample = {
            "video": (video + 40 * label).to(torch.uint8),
            "index": torch.tensor(row),
            "key": torch.tensor(row),
        }
        if self.labels:
            sample["label"] = torch.tensor(-1 if row in self.unlabelled else label)
        return sample


class Data(LightningDataModule):
    """24 training videos, 12 held-out ones."""

    def __init__(self, labels: bool = True, validation: bool = True, batch_size: int = 4) -> None:
        super().__init__()
        self.labels, self.validation, self.batch_size = labels, validation, batch_size
        self.num_classes = 4

    def _loader(self, data: Clips) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(data, batch_size=self.batch_size)

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self._loader(Clips(range(24), clips=1, labels=self.labels))

    def gallery_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self._loader(Clips(range(24), labels=self.labels))

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]] | list[object]:
        if not self.validation:
            return []
        return self._loader(Clips(range(12), labels=self.labels, seed=1))


class TinyMethod(LightningModule):
    """Pulls features apart a little; draws dropout from the global generator on purpose."""

    def __init__(self, dims: int = 3) -> None:
        super().__init__()
        self.backbone = TinyBackbone(dims=dims)
        self.view = PlainView()
        self.losses: list[Tensor] = []

    def on_after_batch_transfer(
        self, batch: dict[str, Tensor], dataloader_idx: int
    ) -> dict[str, Tensor]:
        views: dict[str, Tensor] = self.view(batch)
        return views

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        z = self.backbone(batch["views"].flatten(0, 1)).mean((2, 3, 4))
        loss = -torch.nn.functional.dropout(z, 0.5).var(0).mean()
        self.losses.append(loss.detach())
        self.log("train/loss", loss, prog_bar=True, batch_size=len(z))
        return {"loss": loss, "embedding": z.detach()}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)

    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        from lightning_vssl.backbones.weights import export_record

        checkpoint["export"] = export_record("TinyMethod", self.backbone)
