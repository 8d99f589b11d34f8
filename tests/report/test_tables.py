"""Whose numbers stand where, and which of ours may stand beside a paper's."""

import json
import shutil
from collections import defaultdict

import pytest
import torch
import yaml

from lightning_vssl import cli
from lightning_vssl.data.synthetic import make_demo
from lightning_vssl.report.papers import CITED, Column, numbers, tables
from lightning_vssl.report.read import find
from lightning_vssl.report.settings import leaves
from lightning_vssl.report.tables import filled
from tests.report.folders import RECIPES, evaluate, pretrain

TOP1 = {"top1": 86.0, "top5": 97.0}
UCF = Column("UCF-101", "top1")
ONE = "1 setting other than recipes/eval/ucf101_finetune.yaml"


@pytest.fixture
def export(tmp_path):
    return pretrain(tmp_path / "runs" / "ctp" / "seed0")


def ours_in(folder, paper, name):
    """The rows of ours in a table, each with the row of the paper that it stands behind."""
    runs, _ = find([folder])
    table = next(t for t in filled(runs) if (t.paper, t.name) == (paper, name))
    pairs, last = [], None
    for row in table.rows:
        if row.ours:
            pairs.append((last, row))
        else:
            last = row
    return pairs


class TestPapers:
    def test_every_number_has_a_paper_a_recipe_and_a_place_of_its_own(self):
        places = [(n.paper, n.table, n.method, n.backbone, n.data, n.setting, n.column)
                  for n in numbers()]  # fmt: skip
        assert len(set(places)) == len(places)
        for n in numbers():
            assert n.paper in CITED
            assert (RECIPES / f"{n.recipe}.yaml").is_file(), n.recipe
            assert -10 < n.number < 100

    def test_tables_come_in_one_piece(self):
        names = [(paper, table) for paper, table, _, _ in tables()]
        assert len(set(names)) == len(names)
        assert {paper for paper, _ in names} == set(CITED)

    def test_they_are_the_numbers_that_the_recipes_name(self):
        # The recipes' `paper` was written from the papers by other hands.
        listed = defaultdict(set)
        for n in numbers():
            listed[n.recipe, n.column.metric].add(n.number)
        compared = 0
        for file in sorted((RECIPES / "eval").glob("*.yaml")):
            recipe = f"eval/{file.stem}"
            paper = yaml.safe_load(file.read_text())["model"]["init_args"].get("paper") or {}
            for metric, number in paper.items():
                if (recipe, metric) in listed:  # not what follows from others, as a gap
                    assert number in listed[recipe, metric], (recipe, metric)
                    compared += 1
        assert compared > 40

    def test_a_table_reads_as_in_the_paper(self):
        # ConST-CL, Table 1, its last row, typed here once more.
        table = next(t for t in filled([]) if (t.paper, t.name) == ("ConST-CL", "Table 1"))
        last = [table.rows[-1].cells[column].number for column in table.columns]
        assert last == [39.4, 30.5, 31.1, 24.1, 78.1, 55.2]
        assert not table.ours


class TestAPapersProtocol:
    def test_stands_behind_the_papers_row_without_a_note(self, export, tmp_path):
        evaluate(tmp_path / "runs/ft/seed0", "eval/ucf101_finetune", TOP1, export)
        [(theirs, ours)] = ours_in(tmp_path / "runs", "CtP", "Table 4")
        assert (theirs.method, theirs.backbone, theirs.data) == ("CtP", "R3D-18", "Kinetics-400")
        assert (ours.method, ours.backbone, ours.data) == ("CtP", "R3D-18", "Kinetics-400")
        assert (ours.cells[UCF].number, ours.cells[UCF].notes) == (86.0, ())

    def test_fills_no_table_of_another_protocol(self, export, tmp_path):
        evaluate(tmp_path / "runs/ft/seed0", "eval/ucf101_finetune", TOP1, export)
        runs, _ = find([tmp_path / "runs"])
        assert {t.paper for t in filled(runs) if t.ours} == {"CtP"}

    def test_numbers_of_the_same_weights_share_a_row(self, export, tmp_path):
        evaluate(tmp_path / "runs/u/seed0", "eval/ucf101_finetune", TOP1, export)
        evaluate(tmp_path / "runs/h/seed0", "eval/hmdb51_finetune", {"top1": 57.0}, export)
        [(_, row)] = ours_in(tmp_path / "runs", "CtP", "Table 4")
        found = {column.benchmark: cell.number for column, cell in row.cells.items()}
        assert found == {"UCF-101": 86.0, "HMDB-51": 57.0}

    def test_a_second_seed_has_a_row_of_its_own(self, export, tmp_path):
        for seed in range(2):
            results = {"top1": 86.0 + seed}
            evaluate(tmp_path / f"runs/u/seed{seed}", "eval/ucf101_finetune", results, export)
        found = ours_in(tmp_path / "runs", "CtP", "Table 4")
        assert [row.cells[UCF].number for _, row in found] == [86.0, 87.0]

    def test_an_untouched_network_stands_with_the_papers_none(self, tmp_path):
        evaluate(tmp_path / "runs/u/seed0", "eval/ucf101_finetune", TOP1)
        [(theirs, ours)] = ours_in(tmp_path / "runs", "CtP", "Table 3")
        assert theirs.method == ours.method == "none"
        assert ours.cells[UCF].notes == ()

    def test_boxes_have_their_columns(self, tmp_path):
        for source in ("ground_truth", "detected"):
            evaluate(tmp_path / f"runs/{source}/seed0", "eval/ava", {"mAP": 20.0},
                     protocol__data__box_source=source)  # fmt: skip
        rows = ours_in(tmp_path / "runs", "ConST-CL", "Table 1")
        found = [column.benchmark for _, row in rows for column in row.cells]
        assert sorted(found) == ["AVA, detected boxes", "AVA, true boxes"]


class TestAblation:
    def test_takes_the_row_of_its_setting(self, tmp_path):
        # Of CtP's recipe only the number of trajectories and the share of Kinetics differ.
        name = "model.init_args.augment.init_args.tracks.init_args.trajectories"
        changes = {name: 1, "data.init_args.video_fraction": 0.25}
        export = pretrain(tmp_path / "runs/ctp1/seed0", changes=changes)
        evaluate(tmp_path / "runs/u/seed0", "eval/ucf101_finetune", TOP1, export)
        [(theirs, ours)] = ours_in(tmp_path / "runs", "CtP", "Table 2a")
        assert theirs.setting == ours.setting == "trajectories=1; video_fraction=0.25"
        assert theirs.data == ours.data == "Kinetics-400, 25 %"
        assert ours.cells[UCF].notes == ()  # that is what the row varies
        [(_, ours)] = ours_in(tmp_path / "runs", "CtP", "Table 4")
        assert ours.cells[UCF].notes == ("pretrained with 2 settings other than recipes/ctp.yaml",)

    @pytest.mark.parametrize(
        ("recipe", "notes"), [("ctp_ucf101", ()), ("ctp", ("not pretrained on UCF-101",))]
    )
    def test_a_networks_argument_is_a_setting_too(self, recipe, notes, tmp_path):
        changes = {"model.init_args.backbone.init_args.last_stride": 2}
        export = pretrain(tmp_path / "runs/ctp/seed0", recipe, changes)
        evaluate(tmp_path / "runs/u/seed0", "eval/ucf101_finetune", TOP1, export)
        [(theirs, ours)] = ours_in(tmp_path / "runs", "CtP", "supplement Table 2")
        assert (theirs.setting, theirs.cells[UCF].number) == ("last_stride=2", 83.5)
        assert ours.cells[UCF].notes == notes
        [(_, ours)] = ours_in(tmp_path / "runs", "CtP", "Table 4")
        told = f"pretrained with 1 setting other than recipes/{recipe}.yaml"
        assert ours.cells[UCF].notes == (told,)

    def test_leaves_out_what_no_row_has(self, tmp_path):
        name = "model.init_args.augment.init_args.tracks.init_args.trajectories"
        export = pretrain(tmp_path / "runs/ctp7/seed0", changes={name: 7})
        evaluate(tmp_path / "runs/u/seed0", "eval/ucf101_finetune", TOP1, export)
        assert ours_in(tmp_path / "runs", "CtP", "Table 2a") == []
        assert len(ours_in(tmp_path / "runs", "CtP", "Table 4")) == 1

    def test_a_class_is_a_setting_too(self, tmp_path):
        name = "model.init_args.augment.init_args.tracks.class_path"
        path = "lightning_vssl.augment.label_sources.CycleTracks"
        export = pretrain(tmp_path / "runs/cycle/seed0", "ctp_ucf101", {name: path})
        evaluate(tmp_path / "runs/u/seed0", "eval/ucf101_finetune", TOP1, export)
        [(theirs, _)] = ours_in(tmp_path / "runs", "CtP", "Table 1")
        assert (theirs.setting, theirs.cells[UCF].number) == ("tracks=CycleTracks", 81.1)


class TestNotThePapers:
    """Each thing that keeps a number from a paper's protocol is said, one by one."""

    @pytest.mark.parametrize(
        ("changes", "note"),
        [
            ({"protocol__data__built_in": True}, "built-in data"),
            ({"complete": False}, "incomplete"),
            ({"split": "validation"}, "measured in validation"),
            ({"backbone__init_args__width": 8}, "small network (width 8)"),
            ({"backbone__init_args__depth": [1, 1, 1, 1]}, "small network (depth 1 1 1 1)"),
            ({"settings": {"trainer.max_epochs": 3}}, ONE),
            ({"settings": {"data.init_args.eval_clips.init_args.clips": 2}}, ONE),
            # What the recipe does not name at all:
            ({"settings": {"data.init_args.label_fraction": 0.01}}, ONE),
            ({"settings": {"trainer.limit_train_batches": 2}}, ONE),
            ({"settings": {"trainer.max_steps": 100}}, ONE),
            ({"settings": {"model.init_args.optimizer.init_args.nesterov": True}}, ONE),
            ({"settings": {"data.init_args.max_missing": 1.0}}, ONE),
            # Killed, and tested from the checkpoint that there was:
            ({"epochs_trained": 3}, "trained for 3 of 150 epochs"),
        ],
    )
    def test_says_why(self, changes, note, export, tmp_path):
        evaluate(tmp_path / "runs/ft/seed0", "eval/ucf101_finetune", TOP1, export, **changes)
        [(_, row)] = ours_in(tmp_path / "runs", "CtP", "Table 4")
        assert row.cells[UCF].notes == (note,)

    def test_places_and_machines_are_no_settings(self, export, tmp_path):
        settings = {
            "data.init_args.root": "/elsewhere",
            "data.init_args.num_workers": 64,
            "trainer.devices": 8,
            "trainer.precision": "bf16-mixed",
            "model.init_args.weights": "some/export",
        }
        folder = tmp_path / "runs/ft/seed0"
        evaluate(folder, "eval/ucf101_finetune", TOP1, export, settings=settings)
        [(_, row)] = ours_in(tmp_path / "runs", "CtP", "Table 4")
        assert row.cells[UCF].notes == ()

    def test_settings_that_are_gone(self, export, tmp_path):
        folder = evaluate(tmp_path / "runs/ft/seed0", "eval/ucf101_finetune", TOP1, export)
        for file in folder.glob("config*.yaml"):
            file.unlink()
        [(_, row)] = ours_in(folder, "CtP", "Table 4")
        assert row.cells[UCF].notes == ("settings not known",)

    def test_pretraining_on_built_in_videos(self, tmp_path):
        (tmp_path / "kinetics").mkdir()
        (tmp_path / "kinetics" / ".built-in.json").write_text("{}")
        export = pretrain(tmp_path / "runs/ctp/seed0", root=tmp_path / "kinetics")
        evaluate(tmp_path / "runs/ft/seed0", "eval/ucf101_finetune", TOP1, export)
        [(_, row)] = ours_in(tmp_path / "runs", "CtP", "Table 4")
        assert row.cells[UCF].notes == ("pretrained on built-in videos",)

    @pytest.mark.parametrize(
        ("epoch", "notes"), [(3, ("pretrained for 4 of 90 epochs",)), (89, ()), (90, ())]
    )
    @pytest.mark.parametrize("form", ["export", "checkpoint"])
    def test_a_pretraining_that_was_killed(self, form, epoch, notes, export, tmp_path):
        # Lightning counts the last epoch as 89 in its checkpoints, the export after fit as 90.
        progress = {"epoch": epoch, "global_step": 10}
        (export / "config.json").write_text(json.dumps(progress))
        last = export.parent / "checkpoints" / "last.ckpt"
        last.parent.mkdir()
        torch.save(progress, last)
        weights = export if form == "export" else last
        evaluate(tmp_path / "runs/ft/seed0", "eval/ucf101_finetune", TOP1, weights)
        [(_, row)] = ours_in(tmp_path / "runs/ft", "CtP", "Table 4")
        assert row.cells[UCF].notes == notes

    @pytest.mark.parametrize("gone", ["settings", "weights", "bytes"])
    def test_a_pretraining_that_cannot_be_told(self, gone, export, tmp_path):
        folder = evaluate(tmp_path / "runs/ft/seed0", "eval/ucf101_finetune", TOP1, export)
        if gone == "settings":
            (export.parent / "config.yaml").unlink()
        elif gone == "weights":
            shutil.rmtree(export)
        else:  # trained once more since
            (export / "backbone.safetensors").write_bytes(b"others")
        [(_, row)] = ours_in(folder, "CtP", "Table 4")
        assert row.cells[UCF].notes == ("pretraining not known",)
        assert row.data == ""

    @pytest.mark.parametrize(
        ("root", "note"),
        [
            ("gone", "data not at hand: real or built-in is not known"),
            ("demo", "built-in data"),
            ("real", None),
        ],
    )
    def test_a_result_of_an_earlier_version_is_looked_up(self, root, note, tmp_path):
        (tmp_path / "real").mkdir()
        (tmp_path / "demo").mkdir()
        (tmp_path / "demo" / ".built-in.json").write_text("{}")
        data = {"class": "UCF101", "root": str(tmp_path / root)}
        folder = tmp_path / "runs/ft/seed0"
        evaluate(folder, "eval/ucf101_finetune", TOP1, protocol__data=data)
        [(_, row)] = ours_in(folder, "CtP", "Table 4")
        assert row.cells[UCF].notes == ((note,) if note else ())


class TestWeights:
    def test_are_found_from_above_the_run(self, tmp_path, monkeypatch):
        pretrain(tmp_path / "here/runs/ctp/seed0")
        monkeypatch.chdir(tmp_path / "here")  # where the commands were given
        folder = tmp_path / "here/runs/ft/seed0"
        evaluate(folder, "eval/ucf101_finetune", TOP1, "runs/ctp/seed0/export")
        monkeypatch.chdir(tmp_path)
        [(_, row)] = ours_in(folder, "CtP", "Table 4")
        assert row.data == "Kinetics-400"

    def test_are_followed_through_fine_tuning(self, tmp_path):
        # PreViTS's background test: Kinetics, then UCF-101, then JHMDB.
        export = pretrain(tmp_path / "runs/previts/seed0", "previts_rspnet")
        tuned = tmp_path / "runs/tuned/seed0"
        evaluate(tuned, "eval/ucf101_finetune_previts", TOP1, export, "PreViTSRSPNet",
                 settings={"model.init_args.weights": str(export)})  # fmt: skip
        last = tuned / "checkpoints" / "last.ckpt"
        last.parent.mkdir()
        last.write_bytes(b"weights")
        evaluate(tmp_path / "runs/bg/seed0", "eval/video_backgrounds", {"original": 70.0}, last,
                 "PreViTSRSPNet, FineTune")  # fmt: skip
        [(theirs, ours)] = ours_in(tmp_path / "runs", "PreViTS", "Table 4 (videos)")
        assert (theirs.method, ours.method, ours.data) == ("PreViTS", "PreViTS", "Kinetics-400")


class TestARealRun:
    def test_is_compared_setting_by_setting(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        root = make_demo(tmp_path / "ucf", "ucf101", videos=16, workers=1, progress=False)
        small = RECIPES.parent / "tests/recipes/small/eval_retrieval.yaml"
        words = ["--config", str(RECIPES / "eval/retrieval.yaml"), "--data.root", str(root)]
        words += ["--config", str(RECIPES / "overlay/cpu.yaml"), "--config", str(small)]
        cli.main(["test", *words, "--data.cache_dir", str(tmp_path / "cache")])
        folder = tmp_path / "runs/retrieval/seed0"
        assert json.loads((folder / "result.json").read_text())["protocol"]["data"]["built_in"]
        [run], _ = find([folder])
        assert run.setup.recipe == "eval/retrieval"
        # What the small file lowers, but for the network and what the machine takes at once.
        lowered = leaves(yaml.safe_load(small.read_text()))
        wanted = {
            name
            for name in lowered
            if not name.startswith("model.init_args.backbone")
            and name.rpartition(".")[2] not in ("clips_at_once", "eval_batch_size", "num_workers")
        }
        assert set(run.setup.changed) == wanted
        assert run.notes()[:2] == ("built-in data", "small network (width 4, depth 1 1 1 1)")
