"""What a run of this library adds to LightningCLI.

A folder of its own for every recipe and seed, loggers that write straight into it, and a few words
about resumed runs. Everything else is Lightning's: any of its flags works.
"""

import csv
import difflib
import importlib
import json
import logging
import os
import pkgutil
import re
import sys
import warnings
from pathlib import Path
from typing import Literal, NoReturn

import lightning.pytorch as pl
from jsonargparse import ArgumentParser
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

import lightning_vssl
from lightning_vssl import callbacks, datamodules, evaluation, jobs, methods, proposals
from lightning_vssl.callbacks.progress import progress_bar
from lightning_vssl.cli import TOOLS
from lightning_vssl.data.atomic import whole_file
from lightning_vssl.datamodules.base import VideoDataModule
from lightning_vssl.jobs.base import Job

# Settings that belong to the machine: a resumed run may change them without a word.
_MACHINE = re.compile(
    r"ckpt_path|weights_only|trainer\.(accelerator|devices|num_nodes|strategy|plugins|logger"
    r"|callbacks|default_root_dir|profiler|benchmark|max_time|enable_|log_every|num_sanity)"
    r"|data\.init_args\.(root|cache_dir|num_workers|prefetch_factor)"
)


def _quieten() -> None:
    """Drops Lightning's advertisements and warnings that a user of this command cannot act on."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "Tip: For seamless" not in record.getMessage()
    )
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning's own calls
    warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)")
    warnings.filterwarnings("ignore", r"You have overridden `on_after_batch_transfer`")
    # A job that is done, or a process of one that has nothing left to do.
    warnings.filterwarnings("ignore", r"Total length of `DataLoader` across ranks is zero")
    warnings.filterwarnings("ignore", r"Checkpoint directory .* exists and is not empty")
    # The data modules go on in the middle of an epoch; Lightning only looks at the loader.
    warnings.filterwarnings("ignore", r"You're resuming from a checkpoint that ended before")


@rank_zero_only
def say(text: str) -> None:
    """Prints for the person who started the run: once, whatever the number of processes."""
    print(text, flush=True)


class RunParser(LightningArgumentParser):
    """Answers a mistake on the command line in one line, with the nearest name that exists."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints what is wrong and exits with status 2, without the wall of all options."""
        if not self.exit_on_error or os.environ.get("LIGHTNING_VSSL_DEBUG") == "1":
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        options = [action.dest for action in parser._actions]
        sys.stderr.write(f"lightning-vssl: error: {misspelt(message, options) or short(message)}\n")
        sys.stderr.write(f"(all options: {parser.prog.replace(' [options]', '')} --help)\n")
        sys.exit(2)


def misspelt(message: str, options: list[str]) -> str | None:
    """Turns jsonargparse's complaint about an unknown name into one line.

    Args:
        message: The complaint.
        options: The options of the command, for instance `trainer.max_epochs`.

    Returns:
        The line, or None if the complaint is about something else.
    """
    if found := re.search(r"Option '([^']+)' is not accepted", message):
        name = found.group(1)
        inner = re.match(r"\. Got value: Namespace\(class_path='([^']+)'", message[found.end() :])
        outer = re.findall(r"given class_path '([^']+)'", message[: found.start()])
        owner = inner.group(1) if inner else outer[-1] if outer else ""
        known = _arguments(owner)
        close = _nearest(name, known) or (f"; it has {', '.join(known)}" if known else "")
        return f"{owner or 'the class'} has no option '{name}'{close}"
    if found := re.search(r"(?:unrecognized arguments: --|accept option ')([\w.]+)", message):
        return f"there is no option '{found.group(1)}'" + _nearest_option(found.group(1), options)
    missing = r"(?:import path string: |module '[\w.]+' has no attribute ')(\w+)'?$"
    if found := re.search(missing, message, re.MULTILINE):
        return f"there is no class '{found.group(1)}'" + _nearest(found.group(1), _classes())
    if found := re.search(r"subcommand: invalid choice: '(.+)' \((.+)\)", message):
        known = [*re.findall(r"'(\w+)'", found.group(2)), *TOOLS]
        close = _nearest(found.group(1), known) or f"; choose {', '.join(known)}"
        return f"there is no command '{found.group(1)}'{close}"
    return None


def short(message: str) -> str:
    """Leaves out of jsonargparse's complaint what else it tried, and the value once more.

    Args:
        message: The complaint, of many lines.

    Returns:
        One line.
    """
    message = re.sub(r"Call to compute_fn of link .* failed: ", "", message)
    tried = r"- (Does not validate|Expected a <class 'NoneType')|Does not|Subtypes:|Errors:|Given "
    lines = [line.strip() for line in message.splitlines()]
    kept = [line.removeprefix("- ") for line in lines if line and not re.match(tried, line)]
    return " ".join(kept)


def with_nulls(words: list[str]) -> list[str]:
    """Writes `--model.a.b null` as a configuration of its own.

    jsonargparse hands options of a class within a class on as text, where null becomes 'None': a
    number is then refused, and a path is taken for a file of that name. A configuration keeps it.

    Args:
        words: The command line.

    Returns:
        The same options in the same order.
    """
    kept: list[str] = []
    for word in words:
        pair = f"{kept[-1]}={word}" if kept else word
        for option, ends in ((word, 0), (pair, 1)):
            found = re.fullmatch(r"--((?:model|data)(?:\.\w+){2,})=(?:null|~)", option)
            names = found.group(1).replace(".init_args", "").split(".") if found else []
            if len(names) > 2:
                settings: object = None
                for name in reversed(names[1:]):
                    settings = {"init_args": {name: settings}}
                kept[len(kept) - ends :] = ["--config", json.dumps({names[0]: settings})]
                break
        else:
            kept.append(word)
    return kept


def _nearest(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _nearest_option(name: str, options: list[str]) -> str:
    """The nearest whole name, or, before the first dot, the nearest part of one."""
    first, dot, rest = name.partition(".")
    parts = sorted({option.partition(".")[0] for option in options})
    close = difflib.get_close_matches(first, parts, n=1) if dot else []
    said = _nearest(name, options) or (f"; did you mean '{close[0]}.{rest}'?" if close else "")
    return said if dot else f"{said} (the model's begin with --model., the data's with --data.)"


def _arguments(class_path: str) -> list[str]:
    """What a class takes, also what it hands on to its parents."""
    module, _, name = class_path.rpartition(".")
    owner = getattr(sys.modules.get(module), name, None)
    if not isinstance(owner, type):
        return []
    parser = ArgumentParser()
    parser.add_class_arguments(owner, fail_untyped=False)
    return [action.dest for action in parser._actions if not action.dest.endswith("help")]


def _classes() -> list[str]:
    loaded = [m for key, m in sys.modules.items() if key.startswith("lightning_vssl.")]
    return [k for module in loaded for k, v in vars(module).items() if isinstance(v, type)]


class _Writer(ExperimentWriter):
    """Appends to the run's metrics.csv. Lightning's own deletes what an interrupted run wrote."""

    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        if path.is_file():
            with path.open(newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])


class RunCSVLogger(CSVLogger):
    """CSVLogger into one folder, without versions, that goes on where an earlier run stopped.

    Args:
        folder: The run's folder; the numbers go to `metrics.csv` in it.
    """

    def __init__(self, folder: str) -> None:
        super().__init__(folder, name="", version="")
        self._writer: _Writer | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The file's writer, made on first use."""
        if self._writer is None:
            self._writer = self._experiment = _Writer(self.log_dir)
        return self._writer

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drops the rows from ``step`` on: a run restored at that step writes them again."""
        path = Path(self.log_dir) / ExperimentWriter.NAME_METRICS_FILE
        if not path.is_file():
            return
        with path.open(newline="") as file:
            names, *rows = list(csv.reader(file)) or [[]]
        if "step" not in names:  # cut short while its first row was written
            path.unlink()
            return
        column = names.index("step")
        whole = [row for row in rows if len(row) == len(names)]  # all but a last one cut short
        kept = [names] + [row for row in whole if int(row[column]) < step]
        with whole_file(path) as temporary, temporary.open("w", newline="") as file:
            csv.writer(file).writerows(kept)


class Record(Callback):
    """Keeps a run's settings in its checkpoints and says what became of a resumed run.

    Args:
        settings: Every value in force, by dotted name.
    """

    def __init__(self, settings: dict[str, str]) -> None:
        self.settings = settings
        self.restored: int | None = None

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, object]
    ) -> None:
        """Adds the settings, as plain strings."""
        checkpoint["settings"] = self.settings

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, object]
    ) -> None:
        """Compares the settings with those of the run that wrote the checkpoint."""
        before, step = checkpoint.get("settings"), checkpoint["global_step"]
        self.restored = step if isinstance(step, int) else None
        changed = _changes(before, self.settings) if isinstance(before, dict) else []
        if changed and trainer.training:
            say(
                f"The checkpoint at step {step} was written under other settings:\n"
                + "\n".join(f"  {line}" for line in changed)
                + "\nThe run goes on with the new ones; weights, optimiser and learning rate come "
                "from the checkpoint.\n" + _afresh(trainer)
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes back what an interrupted or an earlier run wrote beyond this step."""
        for logger in trainer.loggers:
            if isinstance(logger, RunCSVLogger):
                logger.rewind(trainer.global_step)


def _changes(before: dict[str, str], after: dict[str, str]) -> list[str]:
    names = [name for name in sorted({*before, *after}) if not _MACHINE.match(name)]
    return [
        f"{name}: {before.get(name, 'unset')} -> {after.get(name, 'unset')}"
        for name in names
        if before.get(name) != after.get(name)
    ]


def _afresh(trainer: pl.Trainer) -> str:
    return (
        f"To start afresh leave out --ckpt_path (this overwrites {trainer.default_root_dir}) or "
        "choose another --seed_everything or --trainer.default_root_dir."
    )


def flat(settings: object, prefix: str = "") -> dict[str, str]:
    """Flattens nested settings to dotted names.

    Args:
        settings: Nested dicts of plain data.
        prefix: The name they stand under.

    Returns:
        Every leaf by its dotted name, written as JSON.
    """
    if not isinstance(settings, dict) or not settings:
        return {prefix: json.dumps(settings)}
    leaves: dict[str, str] = {}
    for key, value in settings.items():
        leaves |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return leaves


def run_folder(root: str | None, model: str, seed: int) -> str:
    """Names the folder of a run.

    Args:
        root: The recipe's `trainer.default_root_dir`, or the folder of an earlier run.
        model: Name of the model's class; names the folder where there is no recipe.
        seed: The run's seed.

    Returns:
        `<root>/seed<seed>`; a trailing `seed<other>` is replaced.
    """
    path = Path(root or f"runs/{model}")
    if re.fullmatch(r"seed\d+", path.name):
        path = path.parent
    return str(path / f"seed{seed}")


def _one_seed(seed: bool | int) -> int:
    if isinstance(seed, bool):
        raise ValueError(
            f"seed_everything={str(seed).lower()}: a run needs a number, since every draw is a "
            "function of it; give one, for instance --seed_everything 0"
        )
    return seed


class RunCLI(LightningCLI):
    """LightningCLI in subclass mode, with a folder for every run.

    Args:
        args: The command line as a list, or a parsed configuration.
    """

    subcommand: Literal["fit", "validate", "test", "predict"]

    def __init__(self, args: ArgsType) -> None:
        rooms = (methods, evaluation, jobs, datamodules, callbacks, proposals)
        for package in rooms:  # for `--model CtP`
            for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
                importlib.import_module(module.name)
        _quieten()
        super().__init__(
            pl.LightningModule,
            pl.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            parser_class=RunParser,
            parser_kwargs={
                "prog": "lightning-vssl",
                "version": lightning_vssl.__version__,
                "allow_abbrev": False,  # or --weights is taken for --weights_only
            },
            args=args,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """One seed: the data's draws start from `seed_everything`."""
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=_one_seed)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses; Lightning's would warn about a list of arguments."""
        if isinstance(args, list):
            if any(re.match(r"--data\.(init_args\.)?seed\b", word) for word in args):
                raise ValueError("data.seed follows from seed_everything; give --seed_everything")
            self.config = parser.parse_args(with_nulls(args))
        else:
            super().parse_arguments(parser, args)

    def _parse_ckpt_path(self) -> None:
        """Leaves the configuration alone: Lightning lets a checkpoint's beat YAML and flags."""

    def before_instantiate_classes(self) -> None:
        """Settles the run's folder and refuses what would go wrong silently."""
        config = self.config[self.subcommand]
        trainer = config.trainer
        if re.fullmatch(r"(bf16|16|64)-true|64", str(trainer.precision)):
            raise ValueError(
                f"trainer.precision={trainer.precision}: Lightning would also cast times and boxes "
                "of a batch; use 32-true, bf16-mixed or 16-mixed"
            )
        model = config.model.class_path.rpartition(".")[2]
        _refuse_command(config.model.class_path, self.subcommand)
        folder = run_folder(trainer.default_root_dir, model, config.seed_everything)
        trainer.default_root_dir = folder
        if self.subcommand != "fit":
            self.save_config_kwargs["config_filename"] = f"config_{self.subcommand}.yaml"
            _refuse_silent_restore(folder, self.subcommand, config.ckpt_path)
        elif config.ckpt_path is None and Path(folder, "checkpoints").is_dir():
            say(f"{folder} holds an earlier run: it is overwritten. --ckpt_path last continues it.")
        settings = json.loads(self.parser.dump(self.config, format="json"))
        self.record = Record(flat(settings[self.subcommand]))
        self.trainer_defaults["callbacks"] = [self.record]

    def instantiate_trainer(self, **kwargs: object) -> pl.Trainer:
        """Adds a progress bar that suits the output, and CSV and TensorBoard in the run's folder.

        Loggers and bars of the recipe stay; `trainer.logger: false` leaves all of them out.
        """
        config = self._get(self.config_init, "trainer")
        bars = [c for c in config.callbacks or [] if isinstance(c, ProgressBar)]
        if not bars and config.enable_progress_bar is not False and not config.barebones:
            self.trainer_defaults["callbacks"].append(progress_bar())
        folder, given = config.default_root_dir, config.logger
        if given is False:
            return super().instantiate_trainer(**kwargs)
        more = (
            [given] if isinstance(given, Logger) else list(given or []) if given is not True else []
        )
        Path(folder).mkdir(parents=True, exist_ok=True)
        ours: list[Logger] = []
        if self.subcommand != "predict":  # which logs nothing
            ours = [RunCSVLogger(folder), TensorBoardLogger(folder, name="", version="")]
        return super().instantiate_trainer(logger=[*ours, *more], **kwargs)

    def after_fit(self) -> None:
        """Says where everything lies and what to run next."""
        trainer = self.trainer
        if self.config.fit.trainer.fast_dev_run:
            return
        if self.record.restored is not None and self.record.restored == trainer.global_step:
            say(
                f"Nothing was left to do: {trainer.default_root_dir} had reached its end, step "
                f"{trainer.global_step} (max_epochs={trainer.max_epochs}, "
                f"max_steps={trainer.max_steps}). Raise one of them to train longer.\n"
                + _afresh(trainer)
            )
            return
        say(self._closing(f"Finished at step {trainer.global_step}"))

    def after_validate(self) -> None:
        """Says where the numbers lie."""
        say(self._closing("Done"))

    after_test = after_validate

    def after_predict(self) -> None:
        """Says where a job's file lies, or that other processes still work."""
        if not isinstance(self.model, Job):
            return
        file = self.model.file
        say(
            f"Done: {file}"
            if file.is_file()
            else f"{file.parent} is not complete: the same command goes on with what is missing "
            "(other processes of this run may still be at work)"
        )

    def _closing(self, done: str) -> str:
        folder = Path(self.trainer.default_root_dir)
        videos = self.datamodule.root if isinstance(self.datamodule, VideoDataModule) else None
        return _closing(f"{done}. In {folder}:", folder, videos)


def _refuse_command(class_path: str, command: str) -> None:
    """Says which command a model is for; Lightning would raise about a step that it lacks."""
    module, _, name = class_path.rpartition(".")
    owner = getattr(sys.modules.get(module), name, None)
    steps = {"fit": "training", "validate": "validation", "test": "test", "predict": "predict"}
    known = [
        verb
        for verb, step in steps.items()
        if getattr(owner, f"{step}_step", None) is not getattr(pl.LightningModule, f"{step}_step")
    ]
    if owner is not None and known and command not in known:
        raise ValueError(f"{name} is not run by {command}, but by {' or '.join(known)}")


def _refuse_silent_restore(folder: str, subcommand: str, ckpt_path: str | None) -> None:
    """On SLURM Lightning loads any hpc_ckpt file it finds, for an evaluation too."""
    found = sorted(Path(folder).glob("hpc_ckpt_*.ckpt"))
    if ckpt_path is None and found and SLURMEnvironment.detect():
        raise ValueError(
            f"{subcommand} would silently load {found[-1]}, left by a job that was requeued; say "
            "which checkpoint to load (--ckpt_path last, --ckpt_path hpc or a file) or remove it"
        )


_KINDS = (
    ("result.json", "the result, beside its protocol and the paper's number"),
    ("checkpoints/last.ckpt", "the run: the same command with --ckpt_path last continues it"),
    ("export", "the encoder alone: lightning_vssl.backbones.weights.load_backbone reads it"),
    ("metrics.csv", "every number that was logged; TensorBoard shows the same"),
)


def _closing(title: str, folder: Path, videos: Path | None) -> str:
    """Lists what lies in a run's folder, where its videos are, and the commands that go on."""
    lines = [title]
    present = [(name, text) for name, text in _KINDS if (folder / name).exists()]
    present += [(str(p.relative_to(folder)), "picture") for p in sorted(folder.rglob("*.png"))[-3:]]
    lines += [f"  {name:<24} {text}" for name, text in present]
    lines += [] if videos is None else [f"The videos: {videos}"]
    lines += ["Next:", f"  tensorboard --logdir {folder}"]
    if (folder / "export").is_dir():
        lines += [
            "  lightning-vssl test --config recipes/eval/retrieval.yaml --model.backbone null "
            f"--model.weights {folder / 'export'} --data.root <folder of UCF-101>",
            "  lightning-vssl fit --config recipes/ctp.yaml --data VideoFolder "
            "--data.root <folder of your own videos>",
        ]
    return "\n".join(lines)
