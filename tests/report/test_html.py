"""report.html and summary.json: self-contained, escaped, reproducible, and whole whatever parts a run lacks."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fedscale.config import Config
from fedscale.data.shards import Sample, write_shard
from fedscale.errors import UserError
from fedscale.progress import SilentReporter
from fedscale.report import default_out, palette, report
from fedscale.report import run as run_stage
from fedscale.report.source import jpeg_note
from fedscale.runs import RunFolder
from fedscale.session import Session

PAPER = (
    "table.md",
    "table.tex",
    *(f"figures/{name}.{suffix}" for name in ("confusion", "fractions") for suffix in ("svg", "pdf")),
)
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Checks that tags are balanced, and collects ids, addresses and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        self.handle_startendtag(tag, attributes)

    def handle_startendtag(self, tag, attributes):
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "xlink:href", "srcset", "action", "data"):
                self.addresses.append(value)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data


def page(paths, out):
    rows = report(paths, out, SilentReporter())
    text = (out / "report.html").read_text(encoding="utf-8")
    return rows, text, Page(text)


@pytest.fixture(scope="module")
def whole(demo):
    """The report of the whole ablation: rows, text and parsed page."""
    return page([demo], demo / "report")


def test_the_summary_has_exactly_the_keys_that_others_rely_on(whole, demo):
    rows, _, _ = whole

    assert json.loads((demo / "report" / "summary.json").read_text()) == rows
    assert len(rows) == 8
    relied_on = {"variant", "method", "seed", "all", "many", "medium", "few", "seconds"}
    spread = {"balanced_error", "ece", "client_mean", "client_variance", "client_worst_decile"}
    rounds, cost = (
        {"aligned", "split", "last", "best", "best_round", "mean10", "rounds_evaluated"},
        {"bytes_down", "bytes_up", "flops"},
    )
    assert all({*row} == relied_on | spread | rounds | cost for row in rows)
    assert rows[-1]["method"] == "fedavg" and rows[-1]["variant"] == "full"
    assert rows[-1]["seconds"] == pytest.approx(21 + 38 + 64 + 9)


def test_the_page_loads_nothing_and_its_ids_are_unique(whole):
    _, text, parsed = whole

    assert all(address.startswith(("data:", "#")) for address in parsed.addresses)
    assert not re.search(r"https?://|@import|<script|url\((?!#)", text)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert set(re.findall(r"var\((--[a-z0-9-]+)\)", text)) <= set(re.findall(r"(--[a-z0-9-]+):", text))


def test_the_page_has_every_part_of_a_full_experiment(whole):
    _, _, parsed = whole

    sections = {"results", "comparison", "rounds", "classes", "confusions", "confusion", "cost", "captions", "notes"}
    assert sections | {"config"} <= set(parsed.ids)
    for expected in (
        "full over fedavg: All +",
        "Best round (oracle: chosen on the test split itself)",
        "Worst 10%",
        "before alignment",
        "Pretrained against not pretrained",
        "88.9%",
        "2.15.0",
    ):
        assert expected in parsed.text


def test_the_same_runs_give_the_same_bytes(whole, demo, tmp_path):
    assert page([demo], tmp_path)[1] == whole[1]
    for name in PAPER:
        assert (tmp_path / name).read_bytes() == (demo / "report" / name).read_bytes()


def test_the_page_shows_the_numbers_of_the_table_that_is_written_for_a_paper(whole, demo):
    _, text, _ = whole
    written = (demo / "report" / "table.md").read_text()

    tables = text.split('id="comparison"')[1].split("</section>")[0]
    pattern = r"[+−]?\d+\.\d\b"
    assert re.findall(pattern, re.sub(r"<h3>.*?</h3>|<li>.*?</li>", "", tables)) == re.findall(
        pattern, written.split("\n- ")[0]
    )


def test_the_figures_of_a_paper_stand_alone(whole, demo):
    for name in PAPER[2:]:
        content = (demo / "report" / name).read_bytes()
        assert content.startswith(b"%PDF" if name.endswith("pdf") else b"<?xml")
        assert b"var(--" not in content and not palette.STAND_IN.search(content.decode("latin-1"))
    assert b"#1f5fbf" in (demo / "report" / "figures" / "fractions.svg").read_bytes()  # the light theme's colours


def test_another_baseline_is_the_one_that_all_is_compared_with(build, tmp_path):
    builder = build()
    builder.run("fedavg"), builder.run("full")

    report([builder.root / "demo"], tmp_path / "out", SilentReporter(), "full")

    text = (tmp_path / "out" / "report.html").read_text()
    assert "fedavg over full: All −" in text
    assert "difference to full" in (tmp_path / "out" / "table.md").read_text()


def test_what_a_model_or_a_config_wrote_is_escaped(build, tmp_path):
    builder = build()
    run = builder.run("full", parent="<b>demo")
    builder.captions(run / "caption", "<script>alert(1)</script> {}")

    _, text, parsed = page([run.parent], tmp_path / "out")

    assert "<script" not in text and "<b>demo" not in text
    assert "<script>alert(1)</script> circle" in parsed.text


@pytest.mark.parametrize("lacking", ["captions", "probe", "rounds", "environment", "times"])
def test_the_page_is_whole_without_an_optional_part(build, tmp_path, lacking):
    run = build().run("full", probe=lacking != "probe")
    for name in {
        "captions": ["caption/done.json"],
        "rounds": ["federate/metrics.jsonl"],
        "environment": ["environment.json"],
        "times": [f"{stage}/done.json" for stage in ("pretrain", "federate", "align")],
    }.get(lacking, []):
        (run / name).unlink()

    _, _, parsed = page([run], tmp_path / "out")

    section = {"captions": "captions", "rounds": "rounds"}.get(lacking)
    assert section not in parsed.ids
    assert ("Pretrained against" in parsed.text) == (lacking != "probe")


def test_one_run_without_variants_is_not_compared(build, tmp_path):
    rows, _, parsed = page([build().run(parent="single")], tmp_path / "out")

    assert [row["variant"] for row in rows] == ["single"]
    assert "Δ" not in parsed.text and "fedavg’s" not in parsed.text


def test_a_run_without_alignment_shows_one_matrix_and_says_so(build, tmp_path):
    _, _, parsed = page([build().run("fedavg")], tmp_path / "out")

    assert "No run here has an alignment stage." in parsed.text
    assert "after the last round" in parsed.text and "after alignment" not in parsed.text


def test_a_hundred_classes_and_two_hundred_rounds_stay_below_a_megabyte(build, tmp_path):
    _, text, _ = page([build(num_classes=100, rounds=200, n_max=500, imbalance=100.0).demo()], tmp_path / "out")

    assert len(text) < 1_000_000


def test_templates_and_offline_teachers_are_said_plainly(build, tmp_path):
    run = build().run("full", teachers={"offline": {"enabled": True}})
    path = run / "caption" / "done.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "engine": "template", "model": None}))

    _, _, parsed = page([run], tmp_path / "out")

    assert "No language model looked at these images." in parsed.text
    assert "trained offline, from scratch" in parsed.text


def test_cifar_from_a_jpeg_copy_is_called_so(build, tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    write_shard(shards / "test.tar", [Sample("000000", b"not decoded here", "jpg", label=0)])
    manifest = {"name": "cifar10_lt", "class_names": ["cat", "dog"], "fingerprint": "0", "recipe": {}, "excluded": []}
    shard = {"file": "test.tar", "samples": 1, "bytes": 0, "sha256": "", "histogram": {}}
    (shards / "manifest.json").write_text(json.dumps({**manifest, "splits": {"test": [shard]}}))
    config = {"data": {"name": "cifar10_lt", "dir": str(shards)}}

    assert "JPEG copy" in jpeg_note(config)
    assert jpeg_note({"data": {"name": "cifar10_lt", "dir": str(tmp_path / "gone")}}) == ""
    assert jpeg_note({"data": {"name": "shapes", "dir": str(shards)}}) == ""


def test_the_stage_writes_beside_the_runs_and_returns_its_verdict(build):
    builder = build()
    builder.run("fedavg"), builder.run("full")

    summary = run_stage(Config(name="demo"), RunFolder(builder.root / "demo"), Session())

    assert summary["runs"] == 2 and summary["verdict"].startswith("full over fedavg: All +")
    assert (builder.root / "demo" / "report" / "report.html").exists()


def test_what_the_stages_recorded_for_the_reader_is_in_the_notes(build, tmp_path):
    run = build().run("full")
    for stage, note in (
        ("federate", {"partition": "moved 3 images"}),
        ("align", {"agreement": 0.913, "notes": ["so"]}),
    ):
        path = run / stage / "done.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **note}))

    _, _, parsed = page([run], tmp_path / "out")

    assert "Partition: moved 3 images" in parsed.text
    assert "the crawl's keyword for 91.3% of the images" in parsed.text


def tuned(folder: Path) -> None:
    """A tuning.json as a sweep writes it: two candidates of one method, the second chosen, a third that diverged."""
    rates = (0.01, 0.1, 3.0)
    states = ("done", "done", "diverged: the <loss> is nan")
    rows = [
        {"values": {"federate.lr": lr}, "score": score, "state": state}
        for lr, score, state in zip(rates, (41.25, 47.5, None), states, strict=True)
    ]
    alone = {"candidates": [{"values": {}, "state": "the only one, not run"}], "chosen": {}}
    told = {"metric": "all", "split": "validation", "rounds": 20, "seed": 1000, "budget": 9, "at": {"data.alpha": 0.5}}
    methods = {"fedavg": {"candidates": rows, "chosen": {"federate.lr": 0.1}}, "server_only": alone}
    (folder / "tuning.json").write_text(json.dumps({**told, "methods": methods}))


def test_how_a_sweep_tuned_its_methods_is_shown_with_every_candidate(build, tmp_path):
    builder = build()
    builder.run("fedavg"), builder.run("full")
    tuned(builder.root / "demo")

    _, text, parsed = page([builder.root / "demo"], tmp_path / "out")

    assert "judged by all on the validation split after 20 rounds, seed 1000, at data.alpha 0.5" in parsed.text
    rows = [re.sub(r"<[^>]*>|\s+", " ", row).split() for row in text.split('id="tuning"')[1].split("<tr>")]
    assert ["fedavg", "federate.lr", "0.1", "47.5", "2", "of", "3"] in rows
    assert ["fedavg", "federate.lr", "0.01", "41.2"] in rows and [
        "fedavg",
        "federate.lr",
        "0.1",
        "47.5",
        "chosen",
    ] in rows
    assert "diverged: the <loss> is nan" in parsed.text and "<loss>" not in text, "escaped"


def test_a_sweep_without_a_choice_shows_no_tuning_and_a_torn_record_is_named(build, tmp_path):
    builder = build()
    builder.run("fedavg")
    folder = builder.root / "demo"
    tuned(folder)
    told = json.loads((folder / "tuning.json").read_text())
    (folder / "tuning.json").write_text(json.dumps({**told, "methods": {"a": told["methods"]["server_only"]}}))
    assert "tuning" not in page([folder], tmp_path / "out")[2].ids

    (folder / "tuning.json").write_text(json.dumps({"metric": "all"}))
    with pytest.raises(UserError, match=r"tuning\.json: not a tuning \(KeyError\('methods'\)\)"):
        page([folder], tmp_path / "out")


def test_runs_on_different_classes_are_compared_with_a_warning(build, tmp_path):
    ten, hundred = build().run("fedavg", parent="ten"), build(num_classes=100).run("full", parent="hundred")

    rows, _, parsed = page([ten, hundred], tmp_path / "out")

    assert len(rows) == 2
    assert "not trained or evaluated on the same data" in parsed.text
    assert "Figures by class leave out runs on other classes: fedavg." in parsed.text


def test_unfinished_children_are_said_and_noted(build, tmp_path):
    builder = build()
    parent = builder.run("full", 7).parent
    (builder.run("full", 8) / "align" / "evaluation.json").unlink()
    reporter = SilentReporter()

    report([parent], tmp_path / "out", reporter)

    assert len(reporter.lines) == 1 and "full-s8" in reporter.lines[0]
    assert "full-s8" in (tmp_path / "out" / "report.html").read_text()


def test_nothing_is_written_for_what_is_no_run(tmp_path):
    with pytest.raises(UserError):
        report([tmp_path / "absent"], tmp_path / "out", SilentReporter())

    assert not (tmp_path / "out").exists()


def test_one_runs_report_lies_beside_it_and_a_comparison_beside_the_runs(tmp_path):
    assert default_out([tmp_path / "demo"]) == tmp_path / "demo" / "report"
    assert default_out([tmp_path / "a", tmp_path / "b"]) == tmp_path / "report-a-b"


def test_the_package_alone_loads_neither_matplotlib_nor_jinja():
    heavy = "import sys, fedscale.report; print([m for m in ('matplotlib', 'jinja2', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
