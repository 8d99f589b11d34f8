"""ClickMe's files: records, messages, pictures, and the maps of people."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate

from lightning_vssl.data.tfrecord import read_example, record_spans
from lightning_vssl.datamodules.clickme import ClickMe, blur_map, human_map
from tests.datamodules.clickme_files import blobs, example, png, record, write


def test_records_and_messages(tmp_path):
    payloads = [example(image=b"\x00\xff" * 300, label=-3, more=[7, 1 << 40]), example(), b""]
    file = tmp_path / "a.tfrecords"
    file.write_bytes(b"".join(record(p) for p in payloads))
    content = file.read_bytes()
    found = [read_example(content[at : at + n]) for at, n in record_spans(file)]
    assert found == [
        {"image": [b"\x00\xff" * 300], "label": [-3], "more": [7, 1 << 40]},
        {},
        {},
    ]


@pytest.mark.parametrize("left", [1, 11, 12, 20, -1])
def test_a_file_that_is_cut_off_is_named(tmp_path, left):
    file = tmp_path / "val-3.tfrecords"
    file.write_bytes(record(example(label=1))[:left])
    with pytest.raises(ValueError, match=r"val-3\.tfrecords is cut off"):
        record_spans(file)


def test_what_is_no_message_is_refused():
    with pytest.raises(ValueError, match=r"not a tf\.train\.Example"):
        read_example(b"\x0a\x50abc")
    with pytest.raises(ValueError, match=r"not a tf\.train\.Example"):
        read_example(b"\xff\xff")


def test_blur_is_the_shifted_gaussian_of_ten_taps():
    """By SciPy, whose even window reaches from -5 to 4 unless its origin is moved."""
    heat = torch.rand(1, 20, 24).double()
    column = [math.exp(-(o**2) / 200) for o in range(-4, 6)]
    row = [math.exp(-((o - 1) ** 2) / 200) for o in range(-4, 6)]
    kernel = np.outer(column, row)
    expected = correlate(heat[0].numpy(), kernel / kernel.sum(), mode="constant", origin=-1)
    assert np.abs(blur_map(heat)[0].numpy() - expected).max() < 1e-12
    inside = blur_map(torch.ones(1, 30, 30).double())[0, 4:-5, 4:-5]
    assert torch.allclose(inside, torch.ones_like(inside))


def test_human_map_keeps_its_place():
    heat = torch.zeros(1, 256, 256)
    heat[0, 60:68, 180:188] = 1
    found = human_map(heat, 224)[0]
    y, x = np.unravel_index(int(found.argmax()), found.shape)
    assert (abs(y - 64 * 7 / 8), abs(x - 184 * 7 / 8)) <= (6, 12)  # the window is off-centre


def test_batches(tmp_path):
    pictures, maps = blobs(11)  # three files: 4, 4, 3
    data = ClickMe(write(tmp_path, pictures, maps), size=64, batch_size=4)
    data.setup("test")
    batches = list(data.test_dataloader())
    assert [len(b["index"]) for b in batches] == [4, 4, 3]
    whole = {name: torch.cat([b[name] for b in batches]) for name in batches[0]}
    assert whole["label"].tolist() == whole["index"].tolist() == list(range(11))
    assert whole["video"].shape == (11, 1, 1, 3, 64, 64)
    assert whole["video"].dtype == torch.uint8
    assert whole["human"].shape == (11, 64, 64)
    # Bilinear at a quarter of the size takes the middle four pixels of each sixteen.
    cells = pictures[7].astype(float).reshape(64, 4, 64, 4, 3)[:, 1:3, :, 1:3].mean((1, 3))
    found = whole["video"][7, 0, 0].permute(1, 2, 0).double().numpy()
    assert np.abs(found - cells).max() <= 0.5
    assert torch.allclose(whole["human"][7], human_map(torch.tensor(maps[7])[None].float(), 64)[0])


def test_bad_input(tmp_path):
    with pytest.raises(FileNotFoundError, match="Harmonization"):
        ClickMe(tmp_path).setup("test")
    with pytest.raises(ValueError, match="split"):
        ClickMe(tmp_path, split="test")
    with pytest.raises(RuntimeError, match="setup"):
        ClickMe(tmp_path).test_dataloader()
    (tmp_path / "val").mkdir()
    payload = example(image=png(np.zeros((256, 256, 3), np.uint8)), label=3)
    (tmp_path / "val" / "val-0.tfrecords").write_bytes(record(payload))
    data = ClickMe(tmp_path)
    data.setup("test")
    with pytest.raises(ValueError, match="has no 'heatmap', but image, label"):
        next(iter(data.test_dataloader()))
