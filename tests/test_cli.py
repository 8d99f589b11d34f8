"""The command line: what it finds, where it writes, what it says."""

import csv
import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lightning_vssl import cli, run

TINY = {
    "trainer": {
        "default_root_dir": "runs/tiny",
        "max_epochs": 2,
        "accelerator": "cpu",
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": [
            {
                "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                "init_args": {"save_last": True, "enable_version_counter": False},
            }
        ],
    },
    "model": {"class_path": "tests.tiny.TinyMethod"},
    "data": {"class_path": "tests.tiny.TinyData"},
}


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """An empty directory with one small recipe in it."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(yaml.safe_dump(TINY))
    return ["--config", "tiny.yaml"]


def refused(capsys, *args):
    """Runs a command that must fail; returns what it says on stderr."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(args))
    assert stopped.value.code not in (0, None)
    said = capsys.readouterr().err
    return said if isinstance(stopped.value.code, int) else f"{stopped.value.code}"


def steps(folder):
    with Path(folder, "metrics.csv").open(newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]]


class TestRunFolder:
    def test_everything_lies_in_the_folder_of_recipe_and_seed(self, tiny, capsys):
        cli.main(["fit", *tiny, "--seed_everything", "3"])
        folder = Path("runs/tiny/seed3")
        assert {p.name for p in folder.iterdir()} >= {"config.yaml", "metrics.csv", "checkpoints"}
        assert list(folder.glob("events.out.tfevents.*"))
        assert (folder / "checkpoints" / "last.ckpt").is_file()
        assert steps(folder) == list(range(8))
        said = capsys.readouterr().out
        assert "Finished at step 8. In runs/tiny/seed3" in said
        assert "tensorboard --logdir runs/tiny/seed3" in said

    def test_data_follow_the_seed(self, tiny):
        cli.main(["fit", *tiny, "--seed_everything", "5", "--trainer.max_steps", "1"])
        saved = yaml.safe_load(Path("runs/tiny/seed5/config.yaml").read_text())
        assert saved["seed_everything"] == 5
        assert "seed" not in saved["data"]["init_args"]

    def test_saved_config_runs_again_in_the_same_folder(self, tiny):
        cli.main(["fit", *tiny])
        cli.main(["fit", "--config", "runs/tiny/seed0/config.yaml"])
        assert [p.name for p in Path("runs/tiny").iterdir()] == ["seed0"]
        cli.main(["fit", "--config", "runs/tiny/seed0/config.yaml", "--seed_everything", "1"])
        assert sorted(p.name for p in Path("runs/tiny").iterdir()) == ["seed0", "seed1"]

    @pytest.mark.parametrize(
        ("root", "expected"),
        [
            ("runs/ctp", "runs/ctp/seed2"),
            ("runs/ctp/seed0", "runs/ctp/seed2"),
            (None, "runs/CtP/seed2"),
        ],
    )
    def test_name(self, root, expected):
        assert run.run_folder(root, "CtP", 2) == expected

    def test_earlier_run_is_mentioned(self, tiny, capsys):
        cli.main(["fit", *tiny])
        capsys.readouterr()
        cli.main(["fit", *tiny])
        assert "runs/tiny/seed0 holds an earlier run" in capsys.readouterr().out
        assert steps("runs/tiny/seed0") == list(range(8))

    def test_evaluation_keeps_the_config_of_the_fit(self, tiny):
        cli.main(["fit", *tiny])
        before = Path("runs/tiny/seed0/config.yaml").read_text()
        cli.main(["test", *tiny, "--ckpt_path", "last"])
        assert Path("runs/tiny/seed0/config.yaml").read_text() == before
        assert Path("runs/tiny/seed0/config_test.yaml").is_file()


class TestResume:
    def test_first_start_with_last_begins(self, tiny):
        cli.main(["fit", *tiny, "--ckpt_path", "last"])
        assert steps("runs/tiny/seed0") == list(range(8))

    def test_finished_run_says_that_nothing_is_left(self, tiny, capsys):
        cli.main(["fit", *tiny])
        capsys.readouterr()
        cli.main(["fit", *tiny, "--ckpt_path", "last"])
        said = capsys.readouterr().out
        assert "Nothing was left to do" in said
        assert "To start afresh leave out --ckpt_path" in said
        assert steps("runs/tiny/seed0") == list(range(8))  # no number was lost

    def test_longer_run_goes_on(self, tiny, capsys):
        cli.main(["fit", *tiny])
        capsys.readouterr()
        cli.main(["fit", *tiny, "--ckpt_path", "last", "--trainer.max_epochs", "3"])
        assert steps("runs/tiny/seed0") == list(range(12))
        said = capsys.readouterr().out
        assert "Nothing was left" not in said
        assert "trainer.max_epochs: 2 -> 3" in said

    def test_other_settings_are_named(self, tiny, capsys):
        cli.main(["fit", *tiny])
        capsys.readouterr()
        again = ["--ckpt_path", "last", "--trainer.max_steps", "12", "--trainer.max_epochs", "-1"]
        cli.main(["fit", *tiny, *again, "--model.temperature", "0.9"])
        said = capsys.readouterr().out
        assert "model.init_args.temperature: 0.2 -> 0.9" in said
        assert "To start afresh" in said

    def test_numbers_after_the_restored_step_are_written_once(self, tiny):
        cli.main(["fit", *tiny])
        checkpoint = next(Path("runs/tiny/seed0/checkpoints").glob("epoch=1*.ckpt"))
        with Path("runs/tiny/seed0/metrics.csv").open("a") as file:
            file.write("1,8,0.5\n1,9,0.5\n")  # written, then killed before a checkpoint
        cli.main(["fit", *tiny, "--ckpt_path", str(checkpoint), "--trainer.max_epochs", "3"])
        assert steps("runs/tiny/seed0") == list(range(12))

    def test_numbers_cut_short_do_not_stop_a_resumed_run(self, tmp_path):
        """A full disk leaves half a row, or a file without its first."""
        file = tmp_path / "metrics.csv"
        file.write_text("epoch,step,train/loss\n0,1,2.0\n0,2,1.0\n0")
        run.RunCSVLogger(str(tmp_path)).rewind(2)
        assert file.read_text() == "epoch,step,train/loss\n0,1,2.0\n"
        file.write_text("")
        logger = run.RunCSVLogger(str(tmp_path))
        logger.rewind(2)
        logger.log_metrics({"train/loss": 0.5}, step=2)
        logger.save()
        assert file.read_text().splitlines() == ["step,train/loss", "2,0.5"]

    def test_checkpoint_file_does_not_beat_the_command_line(self, tiny):
        # LightningCLI takes a checkpoint's hyper-parameters over YAML and flags.
        cli.main(["fit", *tiny])
        path = "runs/tiny/seed0/checkpoints/last.ckpt"
        cli.main(["test", *tiny, "--ckpt_path", path, "--model.temperature", "0.7"])
        saved = yaml.safe_load(Path("runs/tiny/seed0/config_test.yaml").read_text())
        assert saved["model"]["init_args"]["temperature"] == 0.7


class TestMistakes:
    @pytest.mark.parametrize(
        ("mistake", "answer"),
        [
            (
                ["--trainer.max_epohs", "3"],
                "no option 'trainer.max_epohs'; did you mean 'trainer.max_epochs'?",
            ),
            (
                ["--model.temprature", "1"],
                "TinyMethod has no option 'temprature'; did you mean 'temperature'?",
            ),
            (["--data.pionts", "1"], "TinyData has no option 'pionts'; did you mean 'points'?"),
            (["--model", "CtPP"], "there is no class 'CtPP'; did you mean 'CtP'?"),
            (
                ["--model", "lightning_vssl.methods.ctp.CtPP"],
                "there is no class 'CtPP'; did you mean 'CtP'?",
            ),
            (["--trainer.max_epoch", "3"], "did you mean 'trainer.max_epochs'?"),  # no short forms
            (["--modle.x_y", "3"], "there is no option 'modle.x_y'; did you mean 'model.x_y'?"),
            (["--weights", "3"], "the model's begin with --model."),
            (["--model.xyz", "1"], "TinyMethod has no option 'xyz'; it has "),
            (
                ["--data", "Kinetics", "--data.root", "k", "--data.batchsize", "4"],
                "Kinetics has no option 'batchsize'; did you mean 'batch_size'?",
            ),
            (["--config", "recipes/ctp.yml"], "in the package; did you mean recipes/ctp.yaml?"),
            (["--data.points", "0"], "points must be at least 1, got 0"),
            (["--data.points", "some"], "Expected a <class 'int'>"),
            (["--seed_everything", "true"], "a run needs a number"),
            (["--data.seed", "4"], "give --seed_everything"),
            (["--trainer.precision", "bf16-true"], "use 32-true, bf16-mixed or 16-mixed"),
            (["--config", "recipes/ctq.yaml"], "recipes/ctp.yaml"),
        ],
        ids=lambda value: value[0] if isinstance(value, list) else "",
    )
    def test_one_clear_message(self, tiny, capsys, mistake, answer):
        said = refused(capsys, "fit", *tiny, *mistake)
        assert answer in said
        assert said.startswith("lightning-vssl: error:")
        assert len(said.splitlines()) <= 4
        assert "Traceback" not in said

    def test_misspelt_option_in_a_recipe(self, tiny, capsys):
        wrong = {**TINY, "model": {**TINY["model"], "init_args": {"temprature": 1}}}
        Path("wrong.yaml").write_text(yaml.safe_dump(wrong))
        said = refused(capsys, "fit", "--config", "wrong.yaml")
        assert "has no option 'temprature'; did you mean 'temperature'?" in said

    def test_misspelt_command(self, capsys):
        assert "no command 'fitt'; did you mean 'fit'?" in refused(capsys, "fitt")
        said = refused(capsys, "xyz")
        assert "choose fit, validate, test, predict, export, demo" in said

    @pytest.mark.parametrize(
        ("command", "recipe", "answer"),
        [
            ("fit", "eval/retrieval", "Retrieval is not run by fit, but by test"),
            ("test", "ctp", "CtP is not run by test, but by fit"),
            ("fit", "jobs/shards", "ShardJob is not run by fit, but by predict"),
        ],
    )
    def test_a_recipe_for_another_command(self, command, recipe, answer, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit, match=answer):
            cli.main([command, "--config", f"recipes/{recipe}.yaml"])
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(("words", "status"), [(["--help"], 0), (["-h"], 0), ([], 2)])
    def test_every_command_is_listed(self, words, status, capsys):
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        assert ended.value.code == status
        out, err = capsys.readouterr()
        listed = re.findall(r"^  (\w+)  ", out if words else err, re.MULTILINE)
        assert listed == [*run.RunCLI.subcommands(), *cli.TOOLS]

    def test_bug_keeps_its_traceback(self, monkeypatch):
        def broken(words):
            raise RuntimeError("a bug")

        monkeypatch.setattr(cli, "located", broken)
        with pytest.raises(RuntimeError, match="a bug"):
            cli.main(["fit"])

    def test_debug_shows_where_an_error_was_raised(self, tiny, monkeypatch):
        monkeypatch.setenv(cli.DEBUG, "1")
        with pytest.raises(ValueError, match="give --seed_everything"):
            cli.main(["fit", *tiny, "--data.seed", "4"])

    def test_full_disk(self, monkeypatch, capsys):
        def full(words):
            raise OSError(errno.ENOSPC, "No space left on device", "runs/x/last.ckpt")

        monkeypatch.setattr(cli, "located", full)
        said = refused(capsys, "fit")
        assert "no space left on the disk while writing runs/x/last.ckpt" in said


class TestNull:
    def test_of_a_class_within_a_class(self, capsys):
        # jsonargparse makes the text 'None' of it.
        for words in (["--model.backbone.drop_path", "null"], ["--model.backbone.drop_path=null"]):
            with pytest.raises(SystemExit) as stopped:
                cli.main(["fit", "--config", "recipes/vito.yaml", *words, "--print_config"])
            assert not stopped.value.code
            printed = yaml.safe_load(capsys.readouterr().out)
            backbone = printed["model"]["init_args"]["backbone"]
            assert backbone["class_path"].endswith("TimmNet")
            assert backbone["init_args"]["drop_path"] is None
            assert backbone["init_args"]["depth"] == [3, 4, 6, 3]

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            (["--model.a.init_args.b", "null"], ["model", "a", "b"]),
            (["--data.init_args.a.b.c=~"], ["data", "a", "b", "c"]),
        ],
    )
    def test_becomes_a_configuration_in_its_place(self, words, expected):
        before, option, text, after = run.with_nulls(["--x=null", *words, "--y"])
        assert (before, option, after) == ("--x=null", "--config", "--y")
        head, *names = expected
        settings = yaml.safe_load(text)[head]
        for name in names:
            settings = settings["init_args"][name]
        assert settings is None

    def test_other_values_stay_as_they_are(self):
        words = ["fit", "--model.a", "null", "--trainer.a.b", "null", "--model.a.b", "nullx"]
        words += ["--data.init_args.a", "null", "--data.a.b=1", "null"]
        assert run.with_nulls(words) == words


class TestSilentRestore:
    """Lightning loads any hpc_ckpt_*.ckpt it finds on SLURM, for an evaluation too."""

    @pytest.fixture
    def on_slurm(self, monkeypatch):
        for name, value in {
            "SLURM_NTASKS": "1",
            "SLURM_JOB_NAME": "job",
            "SLURM_JOB_ID": "1",
            "SLURM_PROCID": "0",
            "SLURM_LOCALID": "0",
            "SLURM_NODEID": "0",
            "SLURM_NTASKS_PER_NODE": "1",
        }.items():
            monkeypatch.setenv(name, value)

    def test_refused(self, tiny, on_slurm, capsys):
        folder = Path("runs/tiny/seed0")
        folder.mkdir(parents=True)
        (folder / "hpc_ckpt_2.ckpt").touch()
        said = refused(capsys, "test", *tiny)
        assert "silently load runs/tiny/seed0/hpc_ckpt_2.ckpt" in said

    def test_not_where_a_checkpoint_is_named(self, tiny, on_slurm):
        cli.main(["fit", *tiny])
        Path("runs/tiny/seed0/hpc_ckpt_2.ckpt").touch()
        cli.main(["test", *tiny, "--ckpt_path", "last"])


class TestPackagedRecipes:
    def test_packaged_copy_is_found(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        packaged = str(cli.packaged_recipes() / "quickstart.yaml")
        assert cli.located(["fit", "--config", "recipes/quickstart.yaml"])[2] == packaged
        assert cli.located(["fit", "--config=recipes/quickstart.yaml"])[1] == f"--config={packaged}"
        assert cli.located(["fit", "-c", "recipes/overlay/cpu.yaml"])[2].endswith("cpu.yaml")

    def test_local_file_wins(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("recipes").mkdir()
        Path("recipes/quickstart.yaml").write_text("trainer: {max_epochs: 1}")
        words = ["fit", "--config", "recipes/quickstart.yaml"]
        assert cli.located(words) == words

    def test_other_arguments_are_left_alone(self):
        words = ["fit", "--config", "{trainer: {max_epochs: 1}}", "--model", "recipes/x.yaml"]
        assert cli.located(words) == words

    def test_print_config_from_an_empty_directory(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as stopped:
            cli.main(["fit", "--config", "recipes/quickstart.yaml", "--print_config"])
        assert stopped.value.code in (0, None)
        shown = yaml.safe_load(capsys.readouterr().out)
        assert shown["model"]["class_path"] == "lightning_vssl.methods.ctp.CtP"
        assert shown["trainer"]["default_root_dir"] == "runs/quickstart"
        assert list(tmp_path.iterdir()) == []


class TestTools:
    def test_demo_makes_videos(self, tmp_path, capsys):
        root = tmp_path / "videos"
        cli.main(["demo", "--root", str(root), "--videos", "16", "--seed", "1", "--workers", "1"])
        assert list(root.rglob("*.mp4")) or list(root.rglob("*.avi"))
        assert "16 videos" in capsys.readouterr().out

    def test_export_refuses_what_is_not_there(self, tmp_path, capsys):
        said = refused(capsys, "export", str(tmp_path / "none.ckpt"))
        assert "none.ckpt" in said
        assert "Traceback" not in said


def test_command_in_a_process_of_its_own(tmp_path):
    command = [sys.executable, "-m", "lightning_vssl", "--version"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ}, check=True
    )
    assert done.stdout.startswith("lightning-vssl ")
