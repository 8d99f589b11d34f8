"""A method and data so small that a test of the command line takes no time."""

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch.utils.data import DataLoader, TensorDataset


class TinyMethod(LightningModule):
    """Fits a line."""

    def __init__(self, temperature: float = 0.2, learning_rate: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.backbone = torch.nn.Linear(2, 1)
        self.learning_rate = learning_rate

    def training_step(self, batch, batch_idx):
        loss = self.backbone(batch[0]).square().mean()
        self.log("train/loss", loss)
        return loss

    def test_step(self, batch, batch_idx):
        self.log("test/loss", self.backbone(batch[0]).square().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.learning_rate)


class TinyData(LightningDataModule):
    """Eight points."""

    def __init__(self, root: str = "data/tiny", points: int = 8, seed: int = 0) -> None:
        super().__init__()
        if points < 1:
            raise ValueError(f"points must be at least 1, got {points}")
        self.points, self.seed = points, seed

    def train_dataloader(self):
        draw = torch.Generator().manual_seed(self.seed)
        return DataLoader(TensorDataset(torch.randn(self.points, 2, generator=draw)), batch_size=2)

    test_dataloader = train_dataloader
