"""Tensors in place of videos, a network of one layer, and a quiet Trainer."""

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from lightning_vssl.backbones.base import Backbone

PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
COLOURS = torch.tensor(
    [[200, 30, 30], [30, 200, 30], [30, 30, 200], [200, 200, 30], [30, 200, 200], [200, 30, 200]]
)


class OneLayer(Backbone):
    """Batch norm and a convolution that halves height and width."""

    def __init__(self, channels=6, dims=3):
        super().__init__(
            channels={"only": channels},
            strides={"only": (1, 2)},
            init_args={"channels": channels, "dims": dims},
            pixels=PLAIN,
            dims=dims,
        )
        generator = torch.Generator().manual_seed(3)
        if dims == 3:
            self.norm = nn.BatchNorm3d(3)
            self.conv = nn.Conv3d(3, channels, (1, 2, 2), (1, 2, 2))
        else:
            self.norm = nn.BatchNorm2d(3)
            self.conv = nn.Conv2d(3, channels, 2, 2)
        with torch.no_grad():
            drawn = torch.randn(channels, 3, 2, 2, generator=generator)
            self.conv.weight.copy_(drawn[:, :, None] if dims == 3 else drawn)
            self.conv.bias.zero_()

    def stage(self, name, x):
        return self.conv(self.norm(x))


def videos(per_class, classes=6, clips=2, seed=0, first=0):
    """Noisy clips (V, 2, 3, 4, 4), the class is their colour; rows count from ``first``."""
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for i in range(per_class * classes):
        label = i % classes
        noise = torch.randint(-25, 26, (clips, 2, 3, 4, 4), generator=generator)
        pixels = COLOURS[label][None, None, :, None, None] + noise
        samples.append(
            {
                "video": pixels.clamp(0, 255).to(torch.uint8),
                "label": torch.tensor(label),
                "index": torch.tensor(first + i),
                "time": torch.tensor([[0.0, 0.5]] * clips, dtype=torch.float64),
            }
        )
    return samples


class Tensors(LightningDataModule):
    """The samples given, in order."""

    def __init__(self, train=(), val=(), test=(), gallery=None, batch_size=8, num_classes=6):
        super().__init__()
        self.train, self.val, self.test, self._gallery = train, val, test, gallery
        self.batch_size = batch_size
        self.num_classes = num_classes

    def entries(self, split):
        """Rows of the split, as data modules of videos list them."""
        samples = {"train": self.train, "val": self.val, "test": self.test}[split]
        return [int(sample["video"].sum()) for sample in samples], ()

    def _loader(self, samples):
        return DataLoader(list(samples), batch_size=self.batch_size)

    def train_dataloader(self):
        return self._loader(self.train)

    def val_dataloader(self):
        return self._loader(self.val) if len(self.val) else []

    def test_dataloader(self):
        queries = self._loader(self.test)
        return queries if self._gallery is None else [self._loader(self._gallery), queries]


def trainer(folder, **arguments):
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
    }
    return Trainer(default_root_dir=folder, **{**quiet, **arguments})
