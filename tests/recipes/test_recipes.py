"""Every recipe: parsed, instantiated as it stands, run for two batches; every value explained."""

import csv
import functools
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import get_model

from lightning_vssl import cli
from lightning_vssl.data.boxes import BoxFile
from lightning_vssl.data.decode import probe
from lightning_vssl.data.synthetic import make_demo
from lightning_vssl.data.tubes import Tube, TubeFile, tube_table, write_tubes
from lightning_vssl.run import RunCLI, flat
from tests.datamodules.background_files import lay_out_backgrounds, write_imagenet9
from tests.datamodules.clickme_files import blobs, write

HERE = Path(__file__).parent
RECIPES = HERE.parent.parent / "recipes"
ALL = sorted(p for p in RECIPES.rglob("*.yaml") if p.parent.name != "overlay")
OVERLAYS = sorted((RECIPES / "overlay").glob("*.yaml"))
DATA = {
    "UCF101": "ucf101",
    "HMDB51": "hmdb51",
    "Kinetics": "kinetics",
    "VGGSound": "vggsound",
    "ImageFolder": "images",
    "ClickMe": "clickme",
    "AVA": "ava",
    "AVAKinetics": "ava",
    "DAVIS": "davis",
    "GOT10kClips": "got10k",
    "ImageNet9": "imagenet9",
    "JHMDB": "jhmdb",
    "MiniKinetics": "kinetics",
    "SomethingSomethingV1": "something-v1",
    "SomethingSomethingV2": "something-v2",
}
# Data of which nothing is listed beforehand: they know no folder for lists.
UNLISTED = ("ClickMe", "DAVIS", "GOT10kClips", "TrackingPairs")
STORES = ("transcode", "shards")
COUNT = {"images": 40}  # fewer lack some test images' classes in training
ON_CPU = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.precision=32-true"]


def name_of(path):
    return path.relative_to(RECIPES).with_suffix("").as_posix()


each_recipe = pytest.mark.parametrize("recipe", ALL, ids=name_of)


def command_of(recipe):
    """Whether a recipe is for `fit`, for `test` (an evaluation without training) or a job."""
    if name_of(recipe).startswith("jobs/"):
        return "predict"
    untrained = (
        "eval/retrieval",
        "eval/retrieval_previts",
        "eval/hmdb51_retrieval",
        "eval/imagenet_knn",
        "eval/attention_saliency",
        "eval/davis",
        "eval/davis_crw",
        "eval/davis2016_gradcam",
    )
    return "test" if name_of(recipe) in untrained else "fit"


def configured(recipe, *args, instantiate):
    """Parses a recipe, and builds its objects if asked to, without running anything."""

    class Stopped(RunCLI):
        def _run_subcommand(self, subcommand):
            pass

        def instantiate_classes(self):
            if instantiate:
                super().instantiate_classes()

    words = [command_of(recipe), "--config", str(recipe), *args]
    return Stopped(words)


def settings_of(stopped):
    """Every value in force, nested, as plain data."""
    dumped = json.loads(stopped.parser.dump(stopped.config, format="json", skip_unset=False))
    return dumped[stopped.subcommand]


@functools.cache
def written(recipe):
    """What stands in a file; not to be changed."""
    return yaml.safe_load(recipe.read_text())


@functools.cache
def parsed(recipe):
    """Every value in force in a recipe that stands alone."""
    return settings_of(configured(recipe, instantiate=False))


def class_paths(settings, prefix=""):
    return {k: v for k, v in flat(settings, prefix).items() if k.endswith("class_path")}


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """Sixteen built-in videos or more in the layout of each dataset, made when first asked for."""
    made = {}

    def root(layout):
        folder = tmp_path_factory.mktemp("videos") / layout
        if layout == "clickme":
            return str(write(folder, *blobs(6)))
        if layout == "imagenet9":
            return str(write_imagenet9(folder))
        if layout not in made:
            made[layout] = make_demo(
                folder, layout, videos=COUNT.get(layout, 16), workers=1, progress=False
            )
        return str(made[layout])

    return root


class TestAsItStands:
    @each_recipe
    def test_is_built(self, recipe):
        built = configured(recipe, instantiate=True)
        wanted = built.config[command_of(recipe)].model.class_path
        assert type(built.model).__name__ == wanted.rpartition(".")[2]
        if command_of(recipe) != "predict":
            assert sum(p.numel() for p in built.model.parameters()) > 0

    @each_recipe
    def test_keeps_its_runs_apart(self, recipe):
        folder = written(recipe)["trainer"]["default_root_dir"]
        split = "/train" if recipe.stem in STORES else ""  # --data.store takes a folder of splits
        assert folder == f"runs/{recipe.stem}{split}"
        others = [written(p)["trainer"]["default_root_dir"] for p in ALL]
        assert others.count(folder) == 1

    @each_recipe
    def test_has_its_header_and_order(self, recipe):
        text = recipe.read_text()
        for word in ("# Paper: ", "# Hardware: ", "# Expected: ", "# Command: lightning-vssl "):
            assert f"\n{word}" in text
        assert "\n# Deviations" in text
        assert list(written(recipe)) == ["seed_everything", "trainer", "model", "data"]

    @each_recipe
    def test_spells_out_what_a_default_could_change(self, recipe):
        names = flat(written(recipe))
        optimizer = "model.init_args.optimizer.init_args"
        if any(key.startswith("model.init_args.optimizer") for key in names):
            assert f"{optimizer}.lr" in names
            assert f"{optimizer}.weight_decay" in names
            assert f"{optimizer}.momentum" in names or f"{optimizer}.betas" in names
            assert "trainer.max_epochs" in names
            assert "data.init_args.batch_size" in names

    @each_recipe
    def test_training_keeps_a_last_checkpoint(self, recipe):
        callbacks = written(recipe)["trainer"].get("callbacks", [])
        saving = [c["init_args"] for c in callbacks if c["class_path"].endswith("ModelCheckpoint")]
        if command_of(recipe) == "fit":
            periodic = [c for c in saving if "monitor" not in c]
            assert len(periodic) == 1
            assert periodic[0]["save_last"] is True
            assert not any(c.get("save_last") for c in saving if "monitor" in c)

    def test_readme_has_a_row_for_each(self):
        table = (RECIPES / "README.md").read_text()
        missing = [name_of(p) for p in [*ALL, *OVERLAYS] if f"{name_of(p)}.yaml" not in table]
        assert missing == []


def unlike(overlay):
    """One recipe of each kind that an overlay can tell apart.

    It writes into the trainer's settings and the data's, so what counts is the command, the words
    and names among the former, and the class of the latter.
    """
    parts = written(overlay).keys()
    assert parts <= {"trainer", "data", "ckpt_path"}
    kinds = {}
    for recipe in ALL:
        settings = written(recipe)
        trainer = {**settings["trainer"], "default_root_dir": 0, "callbacks": 0}
        names = sorted((k, v if isinstance(v, str) else "") for k, v in trainer.items())
        data = settings["data"]["class_path"] if "data" in parts else ""
        kinds.setdefault((command_of(recipe), data, *names), recipe)
    return kinds.values()


@pytest.mark.parametrize(
    ("recipe", "overlay"),
    [
        pytest.param(recipe, overlay, id=f"{name_of(recipe)}-{overlay.stem}")
        for overlay in OVERLAYS
        for recipe in unlike(overlay)
    ],
)
def test_overlay_fits_recipe(recipe, overlay, capsys):
    alone = parsed(recipe)
    if "workers" in overlay.read_text() and "num_workers" not in alone["data"]["init_args"]:
        with pytest.raises(SystemExit):  # sequences are read ahead where they are followed
            configured(recipe, "--config", str(overlay), instantiate=False)
        assert "num_workers" in capsys.readouterr().err
        return
    both = settings_of(configured(recipe, "--config", str(overlay), instantiate=False))
    for part in ("model", "data"):
        assert class_paths(both[part]) == class_paths(alone[part])
    assert both["trainer"]["callbacks"] == alone["trainer"]["callbacks"]
    changed = {k for k, v in flat(both).items() if flat(alone).get(k) != v}
    names = flat(written(overlay))
    stated = {key for key in changed if any(key.startswith(n.rpartition(".")[0]) for n in names)}
    assert changed == stated, f"changed without being written in the overlay: {changed - stated}"
    assert changed


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda p: p.stem)
def test_overlay_is_built(overlay):
    if overlay.stem == "wandb":  # its logger wants an account: the rest of it is parsed above
        configured(RECIPES / "ctp.yaml", "--config", str(overlay), instantiate=False)
        return
    built = configured(RECIPES / "ctp.yaml", "--config", str(overlay), *ON_CPU, instantiate=True)
    assert built.trainer.num_devices == 1


class TestSmall:
    """The files in `small/` make a recipe fit for a test and change nothing else."""

    @staticmethod
    def small(recipe):
        return HERE / "small" / f"{name_of(recipe).replace('/', '_')}.yaml"

    def test_each_recipe_has_one(self):
        names = {self.small(recipe).name for recipe in ALL}
        assert {p.name for p in (HERE / "small").iterdir()} == names

    @each_recipe
    def test_only_lowers_numbers(self, recipe):
        large = flat(parsed(recipe))
        for key, value in flat(yaml.safe_load(self.small(recipe).read_text())).items():
            before, after = numbers(large[key]), numbers(value)
            assert len(before) == len(after), key
            assert all(a <= b for a, b in zip(after, before, strict=True)), (key, before, after)

    @each_recipe
    def test_runs(self, recipe, videos, tmp_path):
        settings = yaml.safe_load(recipe.read_text())
        kind = settings["data"]["class_path"].rpartition(".")[2]
        command = command_of(recipe)
        words = ["--config", str(recipe), "--config", str(RECIPES / "overlay" / "cpu.yaml")]
        words += ["--config", str(self.small(recipe))]
        if kind == "TrackingPairs":
            words += ["--data.train.init_args.root", videos("got10k")]
            words += ["--data.test.init_args.root", videos("otb")]
            words += ["--data.test.init_args.version", "found"]
        else:
            root = videos(DATA.get(kind, "demo"))
            words += ["--data.root", root]
            lay_out_backgrounds(settings["data"]["init_args"], Path(root))
        if kind not in UNLISTED:
            words += ["--data.cache_dir", str(tmp_path / "cache")]
        if command == "predict":
            lay_out(settings, Path(root))
            cli.main([command, *words])
            check_job(tmp_path / settings["trainer"]["default_root_dir"] / "seed0")
            return
        if settings["data"]["init_args"].get("tubes"):
            lay_out_tubes(Path(settings["data"]["init_args"]["tubes"]), Path(root))
        limits = ["--trainer.limit_test_batches=2"]
        if command == "fit":
            limits += ["--trainer.limit_train_batches=2"]
            if settings["trainer"].get("limit_val_batches") != 0:
                limits += ["--trainer.limit_val_batches=1"]
        cli.main([command, *words, *limits])
        folder = tmp_path / settings["trainer"]["default_root_dir"] / "seed0"
        if "evaluation" in settings["model"]["class_path"]:
            if command == "fit":
                cli.main(["test", *words, *limits, "--ckpt_path", "last"])
            result = json.loads((folder / "result.json").read_text())
            assert result["complete"] is False
            assert result["protocol"]["data"]["class"] == kind
            assert result["paper"] == (settings["model"]["init_args"].get("paper") or {})
            signed = kind in ("ClickMe", "DAVIS")  # a correlation, a decay
            least = -100 if signed else 0
            assert all(least <= number <= 100 for number in result["results"].values())
        else:
            assert (folder / "export" / "backbone.safetensors").is_file()
            assert {p.name for p in folder.glob("*.png")} == set(pictures_of(settings))
        if command == "fit":
            epochs = yaml.safe_load(self.small(recipe).read_text())["trainer"]["max_epochs"]
            check_checkpoint(folder / "checkpoints" / "last.ckpt", steps=2 * epochs)


def pictures_of(settings):
    """Names of the pictures that a recipe's callbacks draw."""
    drawn = {
        "TrackedPatches": "tracked_patches.png",
        "RegionPairs": "region_pairs.png",
        "AttentionMasks": "attention.png",
        "GradCAMs": "grad_cam.png",
        "LearningCurves": "curves.png",
    }
    kinds = [c["class_path"].rpartition(".")[2] for c in settings["trainer"]["callbacks"]]
    return [drawn[kind] for kind in kinds if kind in drawn]


def lay_out(settings, root):
    """Puts beside the videos what a job reads besides them, where its recipe says."""
    if settings["data"]["class_path"].endswith("VideoCandidates"):
        table = Path(settings["data"]["init_args"]["table"])
        table.parent.mkdir(parents=True)
        files = [file.relative_to(root).as_posix() for file in sorted(root.rglob("*.mp4"))]
        rows = [f"{file},{('Tench', 'trout')[i % 2]} {i},n01440764" for i, file in enumerate(files)]
        table.write_text("\n".join(["path,title,class", *rows]))
        classifier = settings["model"]["init_args"]["classifier"]["init_args"]
        weights = timm.create_model(classifier["network"]).state_dict()
        save_file(weights, classifier["weights"])
    if settings["model"]["class_path"].endswith("TrackJob"):
        saliency = settings["model"]["init_args"]["tracker"]["init_args"]["saliency"]
        if saliency["class_path"].endswith("Segmenter"):
            file = Path(saliency["init_args"]["weights"])
            file.parent.mkdir(parents=True)
            network = get_model(saliency["init_args"]["network"], weights_backbone=None)
            torch.save(network.state_dict(), file)


def lay_out_tubes(file, root):
    """Tubes of all videos below a folder, an object that crosses the frame, where a recipe says."""
    tubes = []
    for video in sorted(root.rglob("*.mp4")):
        shown = probe(video)
        masks = np.zeros((40, shown.height // 4, shown.width // 4), bool)
        for frame, mask in enumerate(masks):
            mask[8:20, frame // 4 : frame // 4 + 12] = True
        tubes.append(Tube(video.relative_to(root).as_posix(), 0.2 * np.arange(40), masks))
    write_tubes(file, tube_table(tubes), source="drawn")


def check_job(folder):
    """A job's file is whole, and what it leaves behind is what a training recipe takes."""
    told = json.loads((folder / "job.json").read_text())
    if told["job"] == "CurateJob":
        rows = pq.read_table(folder / "videonet.parquet").to_pylist()
        assert [row["reason"] == "title" for row in rows] == [False, True] * 8
        assert {row["reason"] for row in rows[::2]} <= {"", "class"}
        assert (folder / "balance.png").is_file()
        return
    if told["job"] == "TrackJob":
        tubes = TubeFile(folder / "tubes.parquet", cache_dir=folder.parent)
        assert tubes.videos == 8  # of the sixteen, for training
        assert tubes.parameters.items() <= told.items()
        assert json.loads((folder / "usable.json").read_text())["videos"] == 8
        return
    if told["job"] == "BackgroundJob":
        rows = pq.read_table(folder / "variants.parquet").to_pylist()
        assert len(rows) == 8
        assert {row["error"] for row in rows} <= {"", None}
        assert len(list((folder / "variants" / "original").rglob("*.mp4"))) == 8
        return
    if told["job"] in ("TranscodeJob", "ShardJob"):
        rows = pq.read_table(folder / "videos.parquet").to_pylist()
        assert len(rows) == 8
        assert {row["error"] for row in rows} == {""}
        assert {(folder / row["file"]).is_file() for row in rows} == {True}
        return
    boxes = BoxFile(folder / "boxes.parquet", cache_dir=folder.parent)
    assert boxes.videos == 8  # of the sixteen, for training
    assert boxes.parameters.items() <= told.items()


def check_checkpoint(path, steps):
    """It holds plain data alone, the last step, and what `export` reads."""
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["global_step"] == steps
    assert checkpoint["export"]["backbone"]["class_path"]
    weights = [v for v in checkpoint["state_dict"].values() if v.dtype == torch.float32]
    assert all(torch.isfinite(v).all() for v in weights)


def numbers(text):
    """The numbers in a JSON text that holds nothing else."""
    assert re.fullmatch(r"[\d\s.,\[\]eE+-]+", text), f"not a number: {text}"
    return [float(part) for part in re.findall(r"[\d.]+(?:[eE][+-]?\d+)?", text)]


class TestTrackedSampling:
    """The middle row of PreViTS's tables: the base method on its clips and crops."""

    rows = pytest.mark.parametrize(
        ("name", "method", "folder"),
        [
            ("previts_moco", "MoCo", "runs/moco_tracked"),
            ("previts_rspnet", "RSPNet", "runs/rspnet_tracked"),
        ],
    )

    @rows
    def test_the_headers_command_is_built(self, name, method, folder):
        words = ["--model", method, "--trainer.default_root_dir", folder]
        command = f"lightning-vssl fit --config recipes/{name}.yaml {' '.join(words)}"
        for recipe in (name, method.lower()):
            header = (RECIPES / f"{recipe}.yaml").read_text().replace("\n#", "")
            assert command in re.sub(r"\s+", " ", header)
        built = configured(RECIPES / f"{name}.yaml", *words, instantiate=True)
        assert type(built.model).__name__ == method
        mine = settings_of(built)
        full, base = parsed(RECIPES / f"{name}.yaml"), parsed(RECIPES / f"{method.lower()}.yaml")
        assert mine["data"] == full["data"]
        assert mine["model"]["init_args"]["augment"] == full["model"]["init_args"]["augment"]
        dropped = full["model"]["init_args"].keys() - mine["model"]["init_args"].keys()
        assert dropped == {"attention", "attention_weight", "cam", "target", "official"}
        for key, value in base["model"]["init_args"].items():
            assert key == "augment" or mine["model"]["init_args"][key] == value, key

    def test_runs_and_is_drawn_when_it_is_complete(self, videos, tmp_path):
        root, recipe = videos("vggsound"), RECIPES / "previts_moco.yaml"
        settings = yaml.safe_load(recipe.read_text())
        lay_out_tubes(Path(settings["data"]["init_args"]["tubes"]), Path(root))
        words = ["fit", "--config", str(recipe), "--config", str(RECIPES / "overlay" / "cpu.yaml")]
        words += ["--config", str(TestSmall.small(recipe)), "--data.root", root, "--model", "MoCo"]
        words += ["--trainer.default_root_dir", "runs/moco_tracked"]
        words += ["--data.cache_dir", str(tmp_path / "cache"), "--trainer.limit_train_batches=2"]
        cli.main(words)
        folder = tmp_path / "runs" / "moco_tracked" / "seed0"
        check_checkpoint(folder / "checkpoints" / "last.ckpt", steps=2)
        assert {file.name for file in folder.glob("*.png")} == {"grad_cam.png"}
        for kind in ("frames", "masks"):
            (tmp_path / kind / "walk").mkdir(parents=True)
            for t in range(3):
                picture = np.zeros((32, 48), np.uint8)
                picture[8:20, 8 + 4 * t : 24 + 4 * t] = 255
                Image.fromarray(picture).save(tmp_path / kind / "walk" / f"{t:05d}.png")
        words += ["--ckpt_path", "last", "--trainer.callbacks+", "ObjectTracks"]
        words += ["--trainer.callbacks.frames", str(tmp_path / "frames")]
        words += ["--trainer.callbacks.masks", str(tmp_path / "masks")]
        cli.main([*words, "--trainer.callbacks.size", "[64, 96]"])
        check_checkpoint(folder / "checkpoints" / "last.ckpt", steps=2)
        assert (folder / "object_tracks.png").is_file()


class TestPaperValues:
    """Each row of paper_values.csv: the value in force and its place in the paper."""

    @staticmethod
    def rows():
        with (HERE / "paper_values.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    @each_recipe
    def test_values_in_force(self, recipe):
        rows = [r for r in self.rows() if RECIPES / r["recipe"] == recipe]
        if not rows:
            assert recipe.stem == "quickstart"  # no table of a paper is meant
            return
        force = flat(parsed(recipe))
        for row in rows:
            value = json.loads(force[row["key"]])
            try:
                expected = json.loads(row["value"])
            except json.JSONDecodeError:
                expected = row["value"]
            if isinstance(value, str):
                expected = row["value"]
            assert value == expected, f"{row['key']}, {row['place']}"

    def test_every_row_names_a_recipe_and_a_place(self):
        for row in self.rows():
            assert (RECIPES / row["recipe"]).is_file()
            assert row["place"]
