import re
import sys
from collections.abc import Callable

import pytest
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from lightning_vssl.callbacks.progress import LogProgress, duration, progress_bar
from tests.callbacks.parts import Data, TinyMethod

LINE = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  epoch (\d+)  step (\d+)/12  train/loss -?[\d.e-]+"
    r"  [\d.]+ clips/s  (\d+ s) left"
)


def test_a_terminal_gets_the_rich_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert type(progress_bar(refresh_rate=7)) is RichProgressBar
    assert progress_bar(refresh_rate=7).refresh_rate == 7
    assert type(progress_bar("log")) is LogProgress


def test_a_log_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    bar = progress_bar(every_n_seconds=5)
    assert type(bar) is LogProgress
    assert bar.every_n_seconds == 5
    assert type(progress_bar("rich")) is RichProgressBar


def test_in_a_recipe() -> None:
    parser = ArgumentParser()
    parser.add_argument("--callbacks", type=list[Callback])
    path = "lightning_vssl.callbacks.progress.progress_bar"
    recipe = [{"class_path": path, "init_args": {"kind": "log", "every_n_seconds": 3}}]
    made = parser.instantiate_classes(parser.parse_object({"callbacks": recipe})).callbacks[0]
    assert type(made) is LogProgress
    assert made.every_n_seconds == 3


def test_lines_of_a_run(
    make_trainer: Callable[..., Trainer], capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make_trainer(LogProgress(0.0), epochs=2, enable_progress_bar=True)
    trainer.fit(TinyMethod(), datamodule=Data())
    out = capsys.readouterr().out
    assert "\r" not in out
    assert "\x1b" not in out
    lines = [line for line in out.splitlines() if re.match(r"\d{4}-", line)]
    assert "training to step 12, 6 batches an epoch, 1 process" in lines[0]
    found = [LINE.fullmatch(line) for line in lines[1:-1]]
    assert all(found), lines
    steps = [(m[1], m[2]) for m in found if m]
    assert steps == [(str(i // 6), str(i + 1)) for i in range(12)]
    assert found[-1] is not None
    assert found[-1][3] == "0 s"
    assert "trained 12 steps in" in lines[-1]


def test_long_intervals_print_the_first_and_the_last_step(
    make_trainer: Callable[..., Trainer], capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make_trainer(LogProgress(1e6), epochs=2, enable_progress_bar=True)
    trainer.fit(TinyMethod(), datamodule=Data())
    steps = re.findall(r"step (\d+)/12", capsys.readouterr().out)
    assert steps == ["1", "12"]


def test_clips_per_second(
    monkeypatch: pytest.MonkeyPatch,
    make_trainer: Callable[..., Trainer],
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(
        "lightning_vssl.callbacks.progress.time.monotonic", lambda: float(next(clock))
    )
    trainer = make_trainer(LogProgress(1e6), epochs=1, enable_progress_bar=True)
    trainer.fit(TinyMethod(), datamodule=Data())
    first, last = re.findall(r"([\d.]+) clips/s", capsys.readouterr().out)
    # The clock ticks once per look: start 0; step 1: due at 1, line at 2, restart at 3, 4 clips;
    # steps 2 to 5 look once each; step 6: looks at 8, line at 9; 20 clips since 3.
    assert float(first) == pytest.approx(4 / 2, abs=0.05)
    assert float(last) == pytest.approx(20 / 6, abs=0.05)


def test_disabled_prints_nothing(
    make_trainer: Callable[..., Trainer], capsys: pytest.CaptureFixture[str]
) -> None:
    bar = LogProgress(0.0)
    bar.disable()
    make_trainer(bar, epochs=1, enable_progress_bar=True).fit(TinyMethod(), datamodule=Data())
    assert "step" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (18_420, "5 h 07 min"),
        (183_600, "2 d 03 h"),
        (float("inf"), "?"),
        (float("nan"), "?"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="'bar'"):
        progress_bar("bar")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got -1"):
        LogProgress(-1)
