"""With a config, the doctor knows what its stages will miss before any of them starts."""

import json
import shutil
from pathlib import Path

import pytest

from fedscale import files
from fedscale.data.build import build_shards
from fedscale.doctor import captioning, data_there, lanes, plan, weights
from fedscale.doctor.examine import carried_out
from fedscale.doctor.finding import Gravity
from fedscale.doctor.weights import used_by
from fedscale.errors import UserError
from fedscale.federated.backends.memory import lane_bytes
from fedscale.federated.fit import problem_of
from fedscale.federated.flat import FlatLayout
from fedscale.federated.methods import make_method
from fedscale.models import initial_model
from fedscale.progress import SilentReporter
from tests.doctor.conftest import Patients

SMALL = ("data.shapes.train_per_class=8", "data.shapes.test_per_class=2", "data.open_pool.enabled=false")


def test_originals_that_are_missing_are_a_mistake_with_its_remedy(patient: Patients) -> None:
    (found,) = carried_out("shards", data_there.shards, patient("data.format=folder", "data.source=nowhere"))
    assert found.gravity == Gravity.MISTAKE and "data.source=nowhere" in found.found and "source=DIR" in found.remedy
    assert data_there.shards(patient()).gravity == Gravity.NOTE, "shapes are drawn, not read"


def test_shards_that_are_torn_or_gone_are_broken(patient: Patients, tmp_path: Path) -> None:
    ill = patient(*SMALL, "data.dir=built", "data.imbalance_factor=2")
    manifest = build_shards(ill.config.data, Path("built"), SilentReporter())
    whole = data_there.shards(ill)
    assert whole.gravity == Gravity.FINE and "10 classes" in whole.found
    room = data_there.store(ill)
    assert room is not None and room.facts["bytes_to_write"] == 3 * 32**2 * sum(
        manifest.num_samples(split) for split in ("train", "test")
    )
    tar = next(Path("built").rglob("*.tar"))
    tar.write_bytes(tar.read_bytes()[:-512])
    assert data_there.shards(ill).gravity == Gravity.BROKEN
    tar.unlink()
    assert data_there.shards(ill).facts["wrong"] == [str(tar.relative_to("built"))]


def test_a_config_names_its_runs_and_refuses_another_configs_results(patient: Patients) -> None:
    assert plan.plan(patient()).facts == {"runs": 8, "stages": ["caption", "pretrain", "federate", "align"]}
    single = patient("variant=full", "seeds=[1]")
    assert plan.results(single).facts == {"stages": 4, "complete": 0} and not Path("runs").exists()
    files.write_json(single.run_folder / "full-s1" / "align" / "inputs.json", {"other": 1})
    files.write_text(single.run_folder / "full-s1" / "align" / "metrics.jsonl", "")
    (found,) = carried_out("results", plan.results, single)
    assert found.gravity == Gravity.MISTAKE and "another config" in found.found


def test_the_teachers_are_those_that_the_stages_load(patient: Patients) -> None:
    def sections(*words: str) -> list[str]:
        return [one.section for one in used_by(patient(*words).config)]

    assert sections() == ["teachers.mllm", "teachers.clip"]
    assert sections("pretrain.enabled=false", "align.enabled=false") == []
    assert sections("pretrain.enabled=false", "align.enabled=false", "federate.method=clip2fl") == ["teachers.clip"]
    assert sections("caption.engine=template", "align.enabled=false", "pretrain.objective=keyword") == []
    assert sections("teachers.offline.enabled=true") == []
    assert "teachers.lm" in sections("teachers.lm.model=some/lm")


def test_weights_are_whole_in_a_folder_or_in_the_hubs_cache_or_broken_without_a_hub(
    patient: Patients, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    assert [one.gravity for one in weights.teachers(patient())] == [Gravity.FINE] * 2
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    named = patient("teachers.mllm.model=some/llava")
    assert weights.teachers(named)[0].gravity == Gravity.BROKEN
    snapshot = tmp_path / "hub/models--some--llava/snapshots/abc"
    snapshot.mkdir(parents=True)
    files.write_text(snapshot.parents[1] / "refs" / "main", "abc")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    (snapshot / "model-1.safetensors").write_text("")
    assert "not whole" in weights.teachers(named)[0].found
    (snapshot / "model-2.safetensors").write_text("")
    assert weights.teachers(named)[0].gravity == Gravity.FINE


def test_a_teachers_folder_without_weights_is_broken(patient: Patients, tmp_path: Path) -> None:
    (tmp_path / "llava").mkdir()
    (tmp_path / "llava" / "config.json").write_text("{}")
    assert weights.teachers(patient("teachers.mllm.model=./llava"))[0].gravity == Gravity.BROKEN
    shutil.rmtree(tmp_path / "llava")
    with pytest.raises(UserError, match="no such folder"):
        weights.teachers(patient("teachers.mllm.model=./llava"))


def test_a_lane_takes_what_stage_2_says_and_too_many_are_a_mistake(patient: Patients) -> None:
    asked = patient("variant=full", "data.classes=10", "federate.method=scaffold", "federate.options={}")
    config = asked.config
    model = initial_model(config, 10)
    method = make_method(config.federate, problem_of(model, (3, 32, 32), config.data.partition.clients))
    real = lane_bytes(FlatLayout.of(model), method, config.federate, next(model.parameters()).element_size())
    assert lanes.lanes(asked).facts["lane_bytes"] == real
    many = lanes.lanes(patient("data.classes=10", "federate.lanes=100000000"))
    assert many.gravity == Gravity.MISTAKE and "at most federate.lanes=" in many.remedy
    unknown = lanes.lanes(patient("data.classes=null"))
    assert unknown.gravity == Gravity.UNCHECKED and "classes" in unknown.found


def test_an_endpoint_without_a_key_is_a_mistake_and_its_key_is_never_shown(
    patient: Patients, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = patient("caption.engine=openai", "caption.openai.base_url=http://127.0.0.1:9/v1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    (found,) = carried_out("captioning", captioning.captioning, asked)
    assert found.gravity == Gravity.MISTAKE and "OPENAI_API_KEY" in found.found
    monkeypatch.setenv("OPENAI_API_KEY", "not-to-be-seen")
    (found,) = carried_out("captioning", captioning.captioning, asked)
    assert found.gravity == Gravity.MISTAKE and "cannot be reached" in found.found
    assert "not-to-be-seen" not in str(found)
    assert captioning.captioning(patient("variant=fedavg")) is None
