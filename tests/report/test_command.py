"""The command, its two files, and what it says when a folder is not what it should be."""

import os
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from lightning_vssl import cli
from tests.report.folders import evaluate, pretrain

EMPTY = {"br", "img", "meta"}  # elements without an end


class Page(HTMLParser):
    """Reads a page strictly: every element ends, in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.ids, self.texts = [], [], set(), []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.links += [given[name] for name in ("src", "href") if name in given]
        self.ids |= {given["id"]} if "id" in given else set()
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((tuple(self.open), data))


def picture(file, size=(8, 6)):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.frombytes("RGB", size, os.urandom(3 * size[0] * size[1])).save(file)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A paper's protocol, the same on built-in data, one with pictures, and a pretraining."""
    monkeypatch.chdir(tmp_path)
    export = pretrain(tmp_path / "runs/ctp/seed0")
    picture(export.parent / "tracked_patches.png")
    evaluate(tmp_path / "runs/real/seed0", "eval/ucf101_finetune", {"top1": 86.04}, export)
    evaluate(tmp_path / "runs/drawn/seed0", "eval/ucf101_finetune", {"top1": 25.0}, export,
             protocol__data__built_in=True, method="<b>|odd")  # fmt: skip
    davis = evaluate(tmp_path / "runs/davis/seed0", "eval/davis", {"J&F": 60.0, "J_decay": -2.5},
                     complete=False, settings={"model.init_args.size": 64})  # fmt: skip
    for number in range(8):
        picture(davis / "mask_films" / f"walk_{number}.png")
    picture(davis / "masks" / "walk" / "00000.png")
    picture(davis / "a large one.png")
    with (davis / "a large one.png").open("ab") as file:
        file.write(bytes(2_000_000))  # behind a picture's end all is ignored
    return tmp_path / "runs"


def reported(*words):
    cli.main(["report", *map(str, words)])


class TestFiles:
    def test_say_what_is_a_papers_and_what_is_not(self, runs, capsys):
        reported(runs)
        out = capsys.readouterr().out
        assert "3 results, 1 of them under a paper's protocol; 1 run without a result." in out
        text = (runs.parent / "report.md").read_text()
        table = text.partition("### CtP, Table 4")[2].partition("###")[0]
        assert "| **ours** | CtP | R3D-18 | Kinetics-400 | **86.0** |  |" in table
        assert "| **ours** | <b>\\|odd | R3D-18 | Kinetics-400 | *25.0* (1) |  |" in table
        assert "\n1. built-in data.\n" in table
        assert "VITO, Table B.4" not in text  # J and F alone were not measured

    def test_the_page_is_whole_and_asks_for_nothing(self, runs):
        reported(runs)
        text = (runs.parent / "report.html").read_text()
        page = Page(text)
        outside = [link for link in page.links if not link.startswith(("data:image/png;", "#"))]
        assert outside == ["runs/davis/seed0/a large one.png"]
        assert re.search(r"https?:|url\(|@import", text) is None
        targets = {link[1:] for link in page.links if link.startswith("#")}
        assert targets <= page.ids
        assert targets == {"run1", "run2", "run3"}
        assert 'name="viewport"' in text

    def test_names_are_text_not_markup(self, runs):
        reported(runs)
        assert any(
            "<b>|odd" in data for _, data in Page((runs.parent / "report.html").read_text()).texts
        )

    def test_marks_of_the_page_are_those_of_the_text(self, runs):
        reported(runs)
        page = (runs.parent / "report.html").read_text()
        assert '<td class="paper"><a href="#run3">86.0</a></td>' in page
        assert '<td class="noted"><a href="#run2">25.0<sup>1</sup></a></td>' in page

    def test_pictures_of_the_runs_are_in_both(self, runs):
        reported(runs)
        text = (runs.parent / "report.md").read_text()
        links = re.findall(r"!\[[^]]*\]\(<([^>]*)>\)", text)
        assert "runs/ctp/seed0/tracked_patches.png" in links
        assert len([link for link in links if "davis" in link]) == 6
        assert "3 more pictures" in text
        assert all((runs.parent / link).is_file() for link in links)
        assert "masks/" not in " ".join(links)
        assert (runs.parent / "report.html").read_text().count("data:image/png;base64,") == 6

    def test_a_curve_over_runs_is_shown(self, runs):
        picture(runs / "efficiency" / "curve.png")
        (runs / "efficiency" / "curve.json").write_text("{}")
        reported(runs)
        text = (runs.parent / "report.md").read_text()
        shown = text.partition("## Runs without a result")[2]
        assert "share of labels" in shown
        assert "![curve](<runs/efficiency/curve.png>)" in shown

    def test_links_start_where_the_report_lies(self, runs):
        reported(runs, "--out", runs.parent / "far" / "away" / "all")
        folder = runs.parent / "far" / "away"
        assert {file.name for file in folder.iterdir()} == {"all.md", "all.html"}
        links = re.findall(r"!\[[^]]*\]\(<([^>]*)>\)", (folder / "all.md").read_text())
        assert links
        assert all((folder / link).is_file() for link in links)

    def test_changed_settings_stand_beside_the_recipes(self, runs):
        reported(runs)
        assert "| `model.size` | 480 | 64 |" in (runs.parent / "report.md").read_text()

    def test_every_table_if_asked_for(self, runs):
        reported(runs)
        text = (runs.parent / "report.md").read_text()
        assert "### ConST-CL, Table 1" not in text
        assert re.search(r"Nothing was run of .*ConST-CL: Table 1, Table 2,", text)
        reported(runs, "--every")
        text = (runs.parent / "report.md").read_text()
        assert "### ConST-CL, Table 1" in text
        assert "Nothing was run of" not in text

    def test_are_the_same_each_time(self, runs):
        reported(runs)
        first = [(runs.parent / f"report.{kind}").read_bytes() for kind in ("md", "html")]
        reported(runs, runs / "davis", runs)
        assert [(runs.parent / f"report.{kind}").read_bytes() for kind in ("md", "html")] == first

    def test_a_full_disk_leaves_the_old_ones(self, runs, monkeypatch):
        reported(runs)
        before = (runs.parent / "report.md").read_bytes()
        files = sorted(file.name for file in runs.parent.iterdir())
        (runs / "real/seed0/result.json").unlink()

        def full(descriptor):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(SystemExit, match="no space left on the disk"):
            reported(runs)
        assert (runs.parent / "report.md").read_bytes() == before
        assert sorted(file.name for file in runs.parent.iterdir()) == files


class TestMistakes:
    def refused(self, *words):
        with pytest.raises(SystemExit) as caught:
            reported(*words)
        return str(caught.value)

    def test_no_such_folder(self, tmp_path):
        assert "nowhere: no such folder" in self.refused(tmp_path / "nowhere")

    def test_a_folder_without_runs(self, tmp_path):
        (tmp_path / "other").mkdir()
        told = self.refused(tmp_path / "other")
        assert "other holds no run" in told
        assert "trainer.default_root_dir" in told

    def test_no_folder_at_all(self, capsys):
        with pytest.raises(SystemExit):
            reported()
        assert "DIR" in capsys.readouterr().err

    def test_all_broken_files_are_named_at_once(self, runs):
        (runs / "davis/seed0/result.json").write_text('{"evaluation": "Mask')
        (runs / "real/seed0/result.json").write_text("[]")
        (runs / "ctp/seed0/config.yaml").write_text("a: [1\nb: 2\n")
        told = self.refused(runs)
        assert re.search(r"davis/seed0/result.json is no JSON \(.*line 1 column", told)
        assert "real/seed0/result.json is no result of an evaluation: it lacks evaluation" in told
        assert re.search(r"ctp/seed0/config.yaml is no YAML \(.*line 2", told)

    @pytest.mark.parametrize(
        ("change", "lacking"),
        [
            ({"protocol": {}}, "protocol.data.class"),
            ({"backbone": {}}, "backbone.class_path"),
        ],
    )
    def test_what_a_result_lacks_is_named(self, change, lacking, tmp_path):
        evaluate(tmp_path / "run", "eval/ucf101_finetune", {"top1": 1.0}, **change)
        assert f"run/result.json is no result of an evaluation: it lacks {lacking}" in (
            self.refused(tmp_path / "run")
        )
        assert not (tmp_path / "report.md").exists()
