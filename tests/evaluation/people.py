"""Clips of coloured boxes on noise, the colour is the action, as an AVA data module gives them."""

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from lightning_vssl.metrics.action_rows import ActionRows
from lightning_vssl.metrics.detection import DetectionTask
from lightning_vssl.nn.keyed import sample_key
from tests.evaluation.small import COLOURS

SIDE = 24
ROOM = 4  # boxes that a batch has room for


def people(count, seed=0, frames=4, side=SIDE):
    """Samples with one to three boxes each; actions 1 to 6 are colours, 7 is a flicker."""
    generator = torch.Generator().manual_seed(seed)
    samples, row = [], 0
    for i in range(count):
        video = torch.randint(90, 130, (1, frames, 3, side, side), generator=generator)
        boxes = torch.full((1, 1, ROOM, 4), torch.nan)
        labels = torch.zeros(1, ROOM, 7)
        index = torch.full((ROOM,), -1)
        for n in range(1 + i % 3):
            x, y = 8 * n, int(torch.randint(0, side - 9, (1,), generator=generator))
            colour = int(torch.randint(0, 6, (1,), generator=generator))
            flickers = bool(torch.randint(0, 2, (1,), generator=generator))
            shade = COLOURS[colour][None, :, None, None].expand(frames, 3, 9, 7).clone()
            if flickers:
                shade[::2] //= 2
            video[0, :, :, y : y + 9, x : x + 7] = shade
            boxes[0, 0, n] = torch.tensor([x, y, x + 7, y + 9])
            labels[0, n, colour], labels[0, n, 6] = 1, flickers
            index[n] = row
            row += 1
        samples.append(
            {
                "video": video.to(torch.uint8),
                "boxes": boxes,
                "box_labels": labels,
                "box_index": index,
                "box_scores": (index >= 0).float(),
                "key": torch.tensor(sample_key(seed, 0, i)),
                "index": torch.tensor(i),
                "time": torch.arange(frames, dtype=torch.float64)[None] / 4,
            }
        )
    return samples


def _rows(cells, side):
    frame, box, action = zip(*cells, strict=True)
    return ActionRows(
        videos=tuple(f"clip{i}" for i in range(max(frame) + 1)),
        video=np.array(frame, np.int64),
        second=np.full(len(cells), 902.0),
        box=np.array(box, np.float64) / side,
        action=np.array(action, np.int64),
        score=np.ones(len(cells)),
        source="the test",
        line=np.arange(1, len(cells) + 1),
    )


def task_of(samples):
    """The samples' boxes and actions as a `DetectionTask`."""
    boxes, truth = [], []
    for i, sample in enumerate(samples):
        for n in (sample["box_index"] >= 0).nonzero()[:, 0].tolist():
            box = sample["boxes"][0, 0, n].tolist()
            boxes.append((i, box, 0))
            actions = sample["box_labels"][0, n].nonzero()[:, 0]
            truth += [(i, box, action + 1) for action in actions.tolist()]
    side = samples[0]["video"].shape[-1]
    return DetectionTask(
        truth=_rows(truth, side), boxes=_rows(boxes, side), actions=tuple(range(1, 8))
    )


class People(LightningDataModule):
    """The samples given, in order."""

    classes = ("red", "green", "blue", "yellow", "cyan", "magenta", "flicker")

    def __init__(self, train=(), val=(), test=(), batch_size=10):
        super().__init__()
        self.train, self.val, self.test = train, val, test
        self.batch_size = batch_size

    def task(self, split):
        return task_of({"val": self.val, "test": self.test}[split])

    def _loader(self, samples):
        return DataLoader(list(samples), batch_size=self.batch_size)

    def train_dataloader(self):
        return self._loader(self.train)

    def val_dataloader(self):
        return self._loader(self.val) if len(self.val) else []

    def test_dataloader(self):
        return self._loader(self.test)
