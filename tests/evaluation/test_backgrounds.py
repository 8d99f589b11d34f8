"""One trained classifier on all variants: numbers against its own logits, one table, one file."""

import functools
import json

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_vssl.evaluation.backgrounds import variant_accuracy, with_gaps
from lightning_vssl.evaluation.recognition import LinearProbe
from lightning_vssl.evaluation.result import show
from tests.evaluation.small import OneLayer, Tensors, trainer, videos

SGD = functools.partial(torch.optim.SGD, lr=0.5, momentum=0.9)
NAMES = ("original", "mixed_same", "mixed_rand", "no_fg")


class Variants(Tensors):
    """The test videos four times: as they are, with two kinds of noise, and black."""

    variants = NAMES
    validated_on_test = True

    def setup(self, stage):
        generator = torch.Generator().manual_seed(9)
        rows = []
        for number, name in enumerate(self.variants):
            for sample in self.test:
                noise = torch.randint(-200, 200, sample["video"].shape, generator=generator)
                weight = {"original": 0, "mixed_same": 0.3, "mixed_rand": 2, "no_fg": 0}[name]
                pixels = (sample["video"] + weight * noise).clamp(0, 255).to(torch.uint8)
                index = torch.tensor(number * len(self.test) + int(sample["index"]))
                made = pixels * (name != "no_fg")
                rows.append({**sample, "video": made, "index": index})
        self.rows = rows

    def test_dataloader(self):
        return DataLoader(self.rows, batch_size=5)

    def row_variants(self):
        return torch.arange(len(self.rows)) // len(self.test)


class Merged(Variants):
    """The six classes of training count as three in the test, one as none."""

    def superclasses(self, num_classes):
        assert num_classes == 6
        return torch.tensor([0, 0, 1, 1, 2, -1])

    def setup(self, stage):
        super().setup(stage)
        self.rows = [{**row, "label": row["label"] // 2} for row in self.rows]


def data(kind):
    return kind(train=videos(4, seed=1), val=videos(2, seed=2), test=videos(4, seed=3))


@pytest.mark.parametrize("kind", [Variants, Merged])
def test_every_variant_is_in_one_result(tmp_path, kind, capsys):
    torch.manual_seed(0)
    paper = {"original": 74.0, "bg_gap": 12.1}
    module = LinearProbe(backbone=OneLayer(), optimizer=SGD, paper=paper)
    samples = data(kind)
    runner = trainer(tmp_path, max_epochs=20)
    runner.fit(module, samples)
    runner.test(module, samples)
    result = json.loads((tmp_path / "result.json").read_text())
    # Against the classifier itself, video by video.
    module.eval()
    told = samples.superclasses(6).tolist() if kind is Merged else list(range(6))
    hits = dict.fromkeys(NAMES, 0)
    for row in samples.rows:
        views = module.view({"video": row["video"][None]})["views"]
        scores = module.logits(module.represent(views))[0].softmax(dim=-1).mean(dim=0)
        name = NAMES[int(row["index"]) // 24]
        hits[name] += told[int(scores.argmax())] == int(row["label"])
    expected = {name: pytest.approx(100 * count / 24) for name, count in hits.items()}
    found = dict(result["results"])
    assert found.pop("bg_gap") == pytest.approx(found["mixed_same"] - found["mixed_rand"])
    assert found.pop("no_fg_drop") == pytest.approx(found["original"] - found["no_fg"])
    assert found == expected
    # Colours are learnt, and are gone where pixels are black.
    assert found["original"] > 80
    assert found["mixed_rand"] < found["original"]
    assert found["no_fg"] <= 100 / 3 + 1e-9
    assert result["videos_of_variants"] == dict.fromkeys(NAMES, 24)
    assert result["videos"] == 96
    assert result["validated_on_test"] is True
    assert "bg_gap" in capsys.readouterr().out


def test_a_grid_tests_the_classifier_that_validation_chose(tmp_path):
    torch.manual_seed(0)
    module = LinearProbe(backbone=OneLayer(), optimizer=SGD, lrs=(1e-9, 0.5))
    samples = data(Variants)
    runner = trainer(tmp_path, max_epochs=8)
    runner.fit(module, samples)
    runner.test(module, samples)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["chosen"] == {"lr": 0.5}
    assert result["results"]["original"] > 80


def test_data_without_variants_are_tested_as_always(tmp_path):
    assert variant_accuracy(data(Tensors), 6) is None
    plain = data(Variants)
    plain.variants = ()
    assert variant_accuracy(plain, 6) is None


def test_gaps_stand_where_both_of_their_variants_do():
    assert with_gaps({"original": 80.0}) == {"original": 80.0}
    told = with_gaps({"mixed_same": 48.0, "mixed_rand": 35.9, "no_fg": 51.9, "original": 74.0})
    assert told["bg_gap"] == pytest.approx(12.1)  # PreViTS, Table 4, and Xiao et al.'s name for it
    assert told["no_fg_drop"] == pytest.approx(22.1)  # PreViTS, section 4.3


def test_many_numbers_stand_below_each_other(capsys):
    results = {f"variant_{number}": 10.0 * number for number in range(8)}
    show({"evaluation": "E", "split": "test", "method": "M", "results": results, "paper": {}})
    lines = capsys.readouterr().out.splitlines()
    for name, value in results.items():
        row = next(line for line in lines if name in line)
        assert f"{value:.1f}" in row
    assert max(map(len, lines)) < 60
