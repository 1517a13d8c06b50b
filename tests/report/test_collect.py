"""Run folders in, records out: what is read, what may be missing, and what is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedscale.errors import UserError
from fedscale.report.collect import collect, read_run


def test_a_parent_stands_for_its_variants_in_the_order_of_the_ablation(build):
    collection = collect([build().demo()])

    named = [(run.variant, run.seed) for run in collection.runs]
    assert named == [(name, seed) for name in ("fedavg", "pretrain", "align", "full") for seed in (7, 8)]
    assert collection.title == "demo"


def test_the_order_of_the_variants_is_that_of_the_parents_config(build):
    parent = build().demo()
    (parent / "config.yaml").write_text("variants: {full: {}, align: {}, fedavg: {}, pretrain: {}}\n")

    ordered = list(dict.fromkeys(run.variant for run in collect([parent]).runs))

    assert ordered == ["full", "align", "fedavg", "pretrain"]


def test_shared_stage_folders_are_no_runs_of_their_own(build):
    builder = build()
    run = builder.run("full", 7)
    shared = run.parent / "shared" / "federate-1234"
    shared.parent.mkdir()
    (run / "federate").rename(shared)
    (run / "federate").symlink_to(Path("..") / "shared" / "federate-1234")

    assert [found.path for found in collect([run.parent]).runs] == [run]


def test_the_final_scores_are_the_aligned_ones_where_alignment_is_enabled(build):
    builder = build()
    full, pretrain = read_run(builder.run("full")), read_run(builder.run("pretrain"))

    assert full.aligned is not None and full.final is full.aligned
    assert full.final.scores["few"] > full.federated.scores["few"]
    assert pretrain.aligned is None and pretrain.final is pretrain.federated


def test_an_alignment_left_in_the_folder_does_not_count_once_the_config_disables_it(build):
    run = build().run("full", align={"enabled": False})

    assert read_run(run).aligned is None


def test_only_stages_that_the_config_uses_count_towards_the_time(build):
    builder = build()

    assert set(read_run(builder.run("fedavg")).seconds) == {"federate"}  # though a caption folder lies beside it
    assert set(read_run(builder.run("align")).seconds) == {"caption", "federate", "align"}
    assert list(read_run(builder.run("full")).seconds) == ["caption", "pretrain", "federate", "align"]


def test_probe_captions_environment_and_times_may_be_missing(build):
    run = build().run("full", probe=False)
    for name in ("environment.json", "caption/done.json", "pretrain/done.json", "federate/metrics.jsonl"):
        (run / name).unlink()

    found = read_run(run)

    assert found.probe == () and found.captions is None and found.environment == {} and found.rounds == ()
    assert "pretrain" not in found.seconds


def test_captions_come_with_their_counts_and_examples_of_different_classes(build):
    captions = read_run(build().run("full")).captions

    assert (captions.images, captions.ok, captions.not_ok) == (80, 72, {"truncated": 8})
    assert captions.naming_accuracy == 88.9
    assert [example.keyword for example in captions.examples] == ["circle", "square", "triangle", "star"]


def test_examples_are_read_where_caption_dir_keeps_the_sidecars(build, tmp_path):
    builder = build()
    builder.captions(tmp_path / "pool", "Look, a {}!")

    captions = read_run(builder.run("full", caption={"dir": str(tmp_path / "pool")})).captions

    assert captions.examples[0].texts["conversation"] == "Look, a circle!"


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda root: root / "absent", "no such folder"),
        (lambda root: _file(root / "notes.txt"), "a file, not a folder"),
        (lambda root: _folder(root / "empty"), "no run folder"),
        (lambda root: _folder(root / "begun", "config.yaml"), "nothing has been federated"),
    ],
)
def test_what_is_no_run_is_refused_by_name(tmp_path, make, expected):
    path = make(tmp_path)

    with pytest.raises(UserError, match=expected) as refused:
        collect([path])

    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_a_run_given_itself_and_not_finished_is_refused_with_the_stage_to_run(build):
    run = build().run("full")
    (run / "align" / "evaluation.json").unlink()

    with pytest.raises(UserError, match=r"align: no evaluation yet; run `fedscale align`"):
        collect([run])


def test_unfinished_children_of_a_parent_are_left_out_with_their_reason(build):
    parent = build().demo()
    (parent / "full-s8" / "federate" / "evaluation.json").unlink()

    collection = collect([parent])

    assert len(collection.runs) == 7
    assert len(collection.left_out) == 1 and "full-s8" in collection.left_out[0]


def test_a_parent_without_one_finished_child_is_refused(build):
    builder = build()
    run = builder.run("full")
    (run / "federate" / "evaluation.json").unlink()

    with pytest.raises(UserError, match="no finished run"):
        collect([run.parent])


def test_a_malformed_evaluation_is_refused_by_name(build):
    run = build().run("fedavg")
    path = run / "federate" / "evaluation.json"
    tree = json.loads(path.read_text())
    del tree["per_class"]
    path.write_text(json.dumps(tree))

    with pytest.raises(UserError, match=r"evaluation\.json: not an evaluation .*per_class"):
        collect([run])


def test_what_older_runs_did_not_record_is_none_and_the_balanced_error_is_computed(build):
    run = build().run("fedavg")
    path = run / "federate" / "evaluation.json"
    tree = json.loads(path.read_text())
    for name in ("ece", "fairness", "balanced_error", "balanced_accuracy"):
        del tree[name]
    path.write_text(json.dumps(tree))
    (run / "federate" / "done.json").write_text(json.dumps({"seconds": 3.0}))

    found = read_run(run)

    assert found.final.ece is None and found.final.fairness is None and found.cost is None
    assert found.final.balanced_error == pytest.approx(100 - sum(tree["per_class"]) / 10)


def test_calibration_fairness_and_cost_are_read(build):
    found = read_run(build().run("fedavg"))

    assert found.final.ece == 14.0 and found.cost.flops == 5.6e13
    assert found.final.fairness.worst_decile == pytest.approx(found.final.scores["all"] - 20)


def test_a_malformed_cost_is_refused_by_name(build):
    run = build().run("fedavg")
    (run / "federate" / "done.json").write_text(json.dumps({"seconds": 3.0, "cost": {"clients": 2}}))

    with pytest.raises(UserError, match=r"done\.json: not a round's cost .*bytes_down"):
        read_run(run)


def test_equal_variants_of_two_experiments_are_told_apart_by_the_experiments_names(build):
    builder = build()
    one, two = builder.run("full", parent="one"), builder.run("full", parent="two")

    assert [run.variant for run in collect([one, two]).runs] == ["one/full", "two/full"]


def test_a_run_named_twice_counts_once(build):
    run = build().run("full")

    assert len(collect([run, run.parent]).runs) == 1


def test_the_classes_are_ordered_by_training_images_not_by_label(build):
    run = build().run("fedavg")
    path = run / "federate" / "evaluation.json"
    tree = json.loads(path.read_text())
    tree["train_counts"] = tree["train_counts"][::-1]
    path.write_text(json.dumps(tree))

    assert read_run(run).final.head_to_tail == list(range(9, -1, -1))


def _file(path: Path) -> Path:
    path.write_text("")
    return path


def _folder(path: Path, *names: str) -> Path:
    path.mkdir()
    for name in names:
        (path / name).write_text("name: begun\n")
    return path
