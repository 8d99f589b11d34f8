"""The data-efficiency curve: what is run, what is not run again, what is drawn and refused."""

import json
from pathlib import Path

import pytest
from PIL import Image

from lightning_vssl import cli
from lightning_vssl.data.synthetic import make_demo
from lightning_vssl.efficiency import Efficiency, Point, draw_efficiency, efficiency_command

ROOT = "--trainer.default_root_dir"


class Faked:
    """Stands for the command line: notes it, and leaves what `fit` and `test` would leave."""

    def __init__(self, stop_at=None):
        self.seen = []
        self.stop_at = stop_at

    def __call__(self, words):
        option = {word: words[i + 1] for i, word in enumerate(words[:-1]) if word[:2] == "--"}
        start = "scratch" if option["--model.weights"] == "null" else "pretrained"
        fraction = float(option["--data.label_fraction"])
        resumed = option.get("--ckpt_path")
        self.seen.append((words[0], start, fraction, resumed))
        folder = f"{option[ROOT]}/seed{option['--seed_everything']}"
        if self.seen[-1] == self.stop_at:
            raise KeyboardInterrupt
        value = 100 * fraction / (1 if start == "pretrained" else 2)
        write(folder, "validation" if words[0] == "fit" else "test", value)


def write(folder, split, value):
    (Path(folder) / "checkpoints").mkdir(parents=True, exist_ok=True)
    (Path(folder) / "checkpoints" / "last.ckpt").touch()
    content = {"split": split, "results": {"top1": value}, "complete": True}
    (Path(folder) / "result.json").write_text(json.dumps(content))


@pytest.fixture
def weights(tmp_path):
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"weights")
    return str(file)


def curve(tmp_path, run, **options):
    return Efficiency(tmp_path / "out", ["--config", "x.yaml"], run=run, **options)


def stored(tmp_path):
    points = json.loads((tmp_path / "out" / "curve.json").read_text())["points"]
    return {(p["initialisation"], p["fraction"]): p["value"] for p in points}


def test_runs_each_share_twice_and_draws_it(tmp_path, weights):
    run = Faked()
    curve(tmp_path, run, fractions=[1.0, 0.1], weights=weights)()
    assert run.seen == [
        (command, start, fraction, None if command == "fit" else "last")
        for fraction in (0.1, 1.0)
        for start in ("pretrained", "scratch")
        for command in ("fit", "test")
    ]
    assert stored(tmp_path) == {
        ("pretrained", 0.1): 10.0,
        ("scratch", 0.1): 5.0,
        ("pretrained", 1.0): 100.0,
        ("scratch", 1.0): 50.0,
    }
    with Image.open(tmp_path / "out" / "curve.png") as picture:
        assert picture.width > 600


def test_a_killed_curve_goes_on_where_it_stopped(tmp_path, weights):
    options = {"fractions": [0.1, 0.5], "weights": weights}
    with pytest.raises(KeyboardInterrupt):
        curve(tmp_path, Faked(("test", "scratch", 0.1, "last")), **options)()
    assert stored(tmp_path) == {("pretrained", 0.1): 10.0}
    again = Faked()
    curve(tmp_path, again, **options)()
    assert again.seen[:2] == [
        ("fit", "scratch", 0.1, "last"),  # its checkpoint is there, its test is not
        ("test", "scratch", 0.1, "last"),
    ]
    assert len(again.seen) == 6
    third = Faked()
    curve(tmp_path, third, **options)()
    assert third.seen == []
    curve(tmp_path, third, fractions=[1.0])()  # a later share, from scratch alone
    assert [seen[1] for seen in third.seen] == ["scratch", "scratch"]
    assert len(stored(tmp_path)) == 5


def test_a_misspelt_option_is_mended_under_the_same_folder(tmp_path):
    """Its first run ends before it trains: what it was begun with does not bind the next."""

    def refuses(words):
        raise ChildProcessError("there is no option '--data.rooot'")

    words = ["--config", "x.yaml", "--data.rooot", "videos"]
    with pytest.raises(ChildProcessError):
        Efficiency(tmp_path / "out", words, run=refuses)()
    curve(tmp_path, Faked(), fractions=[1.0])()
    assert stored(tmp_path) == {("scratch", 1.0): 50.0}


@pytest.mark.parametrize(
    ("word", "meant"),
    [("--fraction", "--fractions"), ("--no_scratch", "--no-scratch"), ("--weight=x", "--weights")],
)
def test_a_misspelt_option_of_its_own_is_named_at_once(word, meant):
    run = Faked()
    with pytest.raises(ValueError, match=f"no option {word}; did you mean {meant}"):
        efficiency_command(["--config", "x.yaml", word, "0.1"], run)
    assert run.seen == []


def test_what_is_drawn_is_the_mean_of_the_seeds():
    points = [
        Point("pretrained", 0.1, 0, 40.0, True, "a"),
        Point("pretrained", 0.1, 1, 50.0, True, "b"),
        Point("pretrained", 1.0, 0, 80.0, False, "c"),
        Point("scratch", 1.0, 0, 60.0, True, "d"),
    ]
    (axes,) = draw_efficiency(points, metric="top1").axes
    lines = {line.get_label(): [list(xy) for xy in line.get_data()] for line in axes.lines}
    assert lines["pretrained"] == [[10.0, 100.0], [45.0, 80.0]]
    assert lines["scratch"] == [[100.0], [60.0]]
    assert "cut short" in axes.get_title()
    assert "cut short" not in draw_efficiency(points[:2], metric="top1").axes[0].get_title()


def test_what_does_not_fit_is_refused(tmp_path, weights):
    run = Faked()
    with pytest.raises(ValueError, match=r"--fractions must lie in \(0, 1\], got 1.5"):
        curve(tmp_path, run, fractions=[1.5])
    with pytest.raises(ValueError, match=r"--data.label_fraction differs .* give --fractions"):
        Efficiency(tmp_path, ["--data.label_fraction=0.1"], run=run)
    with pytest.raises(ValueError, match="nothing to draw"):
        curve(tmp_path, run, scratch=False)
    with pytest.raises(FileNotFoundError, match="none"):
        curve(tmp_path, run, weights=str(tmp_path / "none.safetensors"))
    curve(tmp_path, run, fractions=[1.0], weights=weights)()
    with pytest.raises(ValueError, match=r"curve.json was begun with other arguments"):
        Efficiency(tmp_path / "out", ["--config", "y.yaml"], run=run)
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"others")
    with pytest.raises(ValueError, match="begun with other weights_sha256"):
        curve(tmp_path, run, weights=str(other))
    (tmp_path / "out" / "scratch" / "1" / "seed0" / "result.json").write_text("{")
    with pytest.raises(ValueError, match=r"result.json is no JSON .*remove it"):
        curve(tmp_path, run, fractions=[1.0], weights=weights)()
    (tmp_path / "out" / "curve.json").write_text("[]")
    with pytest.raises(ValueError, match=r"curve.json is not a curve of this command"):
        curve(tmp_path, run, fractions=[1.0], weights=weights)


def test_through_the_command_line_on_the_built_in_videos(tmp_path, monkeypatch):
    """One share, from scratch: the recipe itself, its numbers lowered."""
    monkeypatch.chdir(tmp_path)
    root = make_demo(tmp_path / "videos", "ucf101", videos=16, workers=1, progress=False)
    small = Path(__file__).parent / "recipes" / "small" / "eval_ucf101_finetune.yaml"
    words = ["--config", "recipes/eval/ucf101_finetune.yaml"]
    words += ["--config", "recipes/overlay/cpu.yaml", "--config", str(small)]
    words += ["--data.root", str(root), "--data.cache_dir", str(tmp_path / "cache")]
    words += ["--trainer.limit_test_batches=2", "--fractions", "0.5"]
    efficiency_command(words, run=cli.main)
    out = tmp_path / "runs" / "efficiency_ucf101_finetune"
    (point,) = json.loads((out / "curve.json").read_text())["points"]
    result = json.loads((out / point["result"]).read_text())
    assert result["protocol"]["data"]["label_fraction"] == 0.5
    assert result["results"]["top1"] == point["value"]
    assert point["complete"] is False
    assert (out / "curve.png").is_file()


def test_a_run_that_fails_is_told_in_one_line(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lightning_vssl.efficiency.sys.executable", "false")
    with pytest.raises(SystemExit) as ended:
        cli.main(["efficiency", "--config", "recipes/eval/ucf101_finetune.yaml"])
    assert "ended with status 1; the same efficiency command goes on" in str(ended.value)
    assert "Traceback" not in capfd.readouterr().err
