"""The pretraining stage, whole: order, resume, export. The teachers are small stand-ins; everything else is real."""

import dataclasses
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from fedscale import checkpoints, files
from fedscale.config.schema import AlphaConfig, Config, LoraConfig, ModelConfig, PretrainConfig, ProbeConfig
from fedscale.data.augment import normalise
from fedscale.data.images import encode_png
from fedscale.data.manifest import Manifest, ShardInfo
from fedscale.data.shards import Sample, write_shard
from fedscale.errors import Stopped, UserError
from fedscale.models import initial_model, language
from fedscale.runs import RunFolder
from fedscale.server import caption
from fedscale.server.pretrain import data as pretrain_data
from fedscale.server.pretrain import lessons
from fedscale.server.pretrain import stage as pretrain
from fedscale.server.pretrain.data import PairStream
from fedscale.session import Session

WORDS = ("red", "green", "blue")
SIZE = 8


class FakeClip:
    """Channel means as image features; a text's letter counts as text features."""

    embed_dim = 3

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        assert images.dtype == torch.uint8
        return F.normalize(images.float().mean((1, 2)), dim=-1)

    def encode_texts(self, texts: list[str]) -> torch.Tensor:
        return F.normalize(torch.tensor([[text.count(w[0]) + 0.1 for w in WORDS] for text in texts]), dim=-1)


class LetterTokenizer:
    pad_token_id, eos_token_id = 1, 1

    def __call__(self, text: str | list[str]) -> dict[str, list]:
        if isinstance(text, list):
            return {"input_ids": [self(one)["input_ids"] for one in text]}
        return {"input_ids": [0, *(2 + (ord(c) - ord("a")) % 26 for c in text.lower() if c.isalpha())]}


class FakeMllm:
    def language_model(self):
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(1)
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        return LlamaForCausalLM(LlamaConfig(vocab_size=30, **sizes)).eval(), LetterTokenizer()

    class processor:
        @staticmethod
        def apply_chat_template(turns, add_generation_prompt, tokenize):
            assert add_generation_prompt and not tokenize
            assert [part["type"] for turn in turns for part in turn["content"]] == ["text"], "no place for the image"
            return "what"


def picture(label: int, index: int) -> bytes:
    pixels = np.random.default_rng(100 * label + index).integers(0, 80, (SIZE, SIZE, 3), dtype=np.uint8)
    pixels[..., label] += 120
    return encode_png(pixels)


def make_shards(root: Path) -> Manifest:
    splits: dict[str, tuple[ShardInfo, ...]] = {}
    for split, shards, size in (("pool", 4, 9), ("train", 1, 24), ("test", 1, 30)):
        infos = []
        for number in range(shards):
            samples = []
            for place in range(number * size, (number + 1) * size):
                labelled = {"label": place % 3} if split != "pool" else {"keyword": WORDS[place % 3]}
                image = picture(place % 3, place + (1000 if split == "test" else 0))
                samples.append(Sample(f"{place:08d}", image, "png", **labelled))
            file = f"{split}/{number:05d}.tar"
            written = write_shard(root / file, samples)
            infos.append(
                ShardInfo(file, written.samples, written.bytes, written.sha256, dict.fromkeys(WORDS, size // 3))
            )
        splits[split] = tuple(infos)
    manifest = Manifest(root, "colours", WORDS, "f" * 16, splits, {})
    manifest.save()
    return manifest


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return make_shards(tmp_path / "shards")


@pytest.fixture(autouse=True)
def teachers(monkeypatch) -> None:
    monkeypatch.setattr(lessons, "load_clip", lambda config, device: FakeClip())
    monkeypatch.setattr(language, "load_mllm", lambda config, device, held: FakeMllm())


def config_of(manifest: Manifest, **settings) -> Config:
    config = Config(name="t", model=ModelConfig(width=4), device="cpu")
    small = {"epochs": 2, "batch_size": 6, "streams": 2, "language_model": "frozen", "save_every": 4, "lr": 1e-2}
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, dir=str(manifest.root), image_size=SIZE),
        caption=dataclasses.replace(config.caption, engine="template"),
        pretrain=PretrainConfig(
            **{**small, "visual_tokens": 2, "probe": ProbeConfig(enabled=False), "augment": "flip", **settings}
        ),
    )


def captioned(manifest: Manifest, path: Path, **settings) -> tuple[Config, RunFolder]:
    config, run = config_of(manifest, **settings), RunFolder(path)
    caption.run(config, run, Session())
    return config, run


class StopAfter:
    """A stop flag that is set at the n-th look."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    def set(self) -> None:
        self.looks = 0

    def is_set(self) -> bool:
        self.looks -= 1
        return self.looks <= 0


def export(run: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(run.stage("pretrain") / "export" / "model.safetensors")


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def keys_of(stream: PairStream, config: Config, start: int, steps: int, **split) -> list[float]:
    """Each image's mean, which tells images of these pictures apart, over some steps."""
    batches = stream.batches(start, config.pretrain.batch_size, **split)
    return [float(image.float().mean()) for _ in range(steps) for image in next(batches)[0].images]


def test_it_exports_f_alone_and_logs_every_step(manifest, tmp_path):
    config, run = captioned(manifest, tmp_path / "run")
    summary = pretrain.run(config, run, Session())
    initial = initial_model(config, len(manifest.class_names))
    found = export(run)
    assert found.keys() == initial.state_dict().keys()
    assert not torch.equal(found["conv1.weight"], initial.state_dict()["conv1.weight"])
    assert torch.equal(found["classifier.weight"], initial.state_dict()["classifier.weight"]), "as initialised"
    rows = files.read_jsonl(run.stage("pretrain") / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 13)) and summary["steps"] == 12
    assert rows[0]["alpha"] == 0.0 and rows[-1]["alpha"] == 1.0
    assert {"loss", "lm", "feature", "lr", "images_per_second"} <= rows[0].keys()
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert sorted(path.name for path in run.stage("pretrain").glob("step_*")) == ["step_12", "step_8"], "two are kept"
    assert (run.stage("pretrain") / "step_12" / "COMPLETE").exists()
    assert files.read_json(run.stage("pretrain") / "step_12" / "train_state.json")["samples_seen"] == 72


def test_event_files_hold_the_rows_and_a_profile_is_kept(manifest, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config, run = captioned(manifest, tmp_path / "run", tensorboard=True)
    summary = pretrain.run(config, run, Session(), profile=True)
    folder = run.stage("pretrain")
    events = EventAccumulator(str(next(folder.glob("tensorboard/**/events.*")).parent))
    events.Reload()
    rows = files.read_jsonl(folder / "metrics.jsonl")
    for name in ("loss", "lr", "grad_norm", "data_wait", "teacher_share"):
        found = {event.step: event.value for event in events.Scalars(name)}
        assert found == pytest.approx({row["step"]: row[name] for row in rows}, rel=1e-6), name
    assert any("aten::" in event.get("name", "") for event in files.read_json(folder / "trace.json")["traceEvents"])
    assert 0 < summary["teacher_share"] < 1 and 0 < summary["data_wait"] < 1


def test_it_does_not_load_deepspeed_unasked(manifest, tmp_path, monkeypatch):
    """It takes seconds, and accelerate imports it in several places as soon as it is installed."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "deepspeed"]:
        monkeypatch.delitem(sys.modules, name)
    config, run = captioned(manifest, tmp_path / "run", epochs=1, language_model="lora")
    pretrain.run(config, run, Session())
    assert "deepspeed" not in sys.modules


@pytest.mark.parametrize("how", ["lora", "full"])
def test_it_repeats_and_resumes_exactly(manifest, tmp_path, how):
    settings = {"language_model": how, "contrastive_weight": 0.3, "lora": LoraConfig(dropout=0.1)}
    config, straight = captioned(manifest, tmp_path / "straight", **settings)
    pretrain.run(config, straight, Session())
    _, again = captioned(manifest, tmp_path / "again", **settings)
    pretrain.run(config, again, Session())
    assert equal(export(straight), export(again)), "same seed, same result"

    _, stopped = captioned(manifest, tmp_path / "stopped", **settings)
    with pytest.raises(Stopped, match="after step 3 of 12"):
        pretrain.run(config, stopped, Session(stop=StopAfter(3)))
    assert checkpoints.newest(stopped.stage("pretrain"), "step")[0] == 3
    session = Session()
    pretrain.run(config, stopped, session)
    assert any("resuming after step 3" in line for line in session.reporter.lines)
    assert equal(export(straight), export(stopped))


def _killed_at_step(config: Config, run: RunFolder, step: int) -> None:
    def log(self, row) -> None:
        files.append_jsonl(self._folder / "metrics.jsonl", row)
        if row["step"] == step:
            os.kill(os.getpid(), signal.SIGKILL)

    pretrain.Trainer._log = log
    pretrain.run(config, run, Session())


def test_after_a_kill_it_goes_on_from_the_newest_complete_step(manifest, tmp_path):
    config, straight = captioned(manifest, tmp_path / "straight")
    pretrain.run(config, straight, Session())
    _, killed = captioned(manifest, tmp_path / "killed")
    worker = multiprocessing.get_context("fork").Process(target=_killed_at_step, args=(config, killed, 10))
    worker.start()
    worker.join(60)
    assert worker.exitcode == -signal.SIGKILL
    folder = killed.stage("pretrain")
    (folder / "step_9").mkdir()  # a checkpoint that was cut short: newer, and without its marker
    session = Session()
    pretrain.run(config, killed, session)
    assert any("resuming after step 8" in line for line in session.reporter.lines)
    assert equal(export(straight), export(killed))
    assert [row["step"] for row in files.read_jsonl(folder / "metrics.jsonl")] == list(range(1, 13)), "no step twice"


def test_the_seed_decides_and_the_start_is_that_of_training_from_scratch(manifest, tmp_path):
    config = config_of(manifest)
    torch.manual_seed(99)
    first = initial_model(config, len(manifest.class_names)).state_dict()
    assert equal(first, initial_model(config, len(manifest.class_names)).state_dict())
    assert not equal(first, initial_model(dataclasses.replace(config, seed=8), len(manifest.class_names)).state_dict())


def test_every_pair_is_seen_once_an_epoch_in_another_order_each(manifest, tmp_path):
    config, run = captioned(manifest, tmp_path / "run")
    stream = PairStream(config, manifest, run)
    assert (stream.num_pairs, stream.num_skipped) == (36, 0)
    seen = keys_of(stream, config, 0, 12)
    first, second = seen[:36], seen[36:]
    assert sorted(first) == sorted(second) and len(set(first)) == 36
    assert first != second
    assert keys_of(stream, config, 0, 12) == seen


def test_what_is_kept_in_memory_changes_nothing(manifest, tmp_path, monkeypatch):
    config, run = captioned(manifest, tmp_path / "run")
    kept = keys_of(PairStream(config, manifest, run), config, 0, 18)
    monkeypatch.setattr(pretrain_data, "KEPT_BYTES", 2 * manifest.shards("pool")[0].bytes)  # two shards of four
    assert keys_of(PairStream(config, manifest, run), config, 0, 18) == kept


def test_a_buffer_smaller_than_the_epoch_still_shows_every_pair_once(manifest, tmp_path):
    config, run = captioned(manifest, tmp_path / "run")
    config = dataclasses.replace(config, pretrain=dataclasses.replace(config.pretrain, shuffle_buffer=2))
    seen = keys_of(PairStream(config, manifest, run), config, 0, 6)
    assert len(set(seen)) == 36
    assert keys_of(PairStream(config, manifest, run), config, 4, 2) == seen[24:]


@pytest.mark.parametrize("start", [1, 5, 6, 11])
def test_skipping_to_a_step_gives_what_would_have_come_there(manifest, tmp_path, start):
    config, run = captioned(manifest, tmp_path / "run")
    stream = PairStream(config, manifest, run)
    assert keys_of(stream, config, start, 3) == keys_of(stream, config, 0, 14)[6 * start : 6 * (start + 3)]


def test_two_ranks_together_see_what_one_sees(manifest, tmp_path):
    config, run = captioned(manifest, tmp_path / "run")
    stream = PairStream(config, manifest, run)
    ranks = [keys_of(stream, config, 2, 3, rank=rank, world=2) for rank in range(2)]
    assert sorted(ranks[0] + ranks[1]) == sorted(keys_of(stream, config, 2, 3))


def test_the_kind_of_text_changes_over_epochs_and_covers_all(manifest, tmp_path):
    config, run = captioned(manifest, tmp_path / "run")
    batches = PairStream(config, manifest, run).batches(0, 36)
    asked = [[dialogue[0][0] for dialogue in next(batches)[0].dialogues] for _ in range(2)]
    assert len(set(asked[0])) == len(config.caption.kinds) and asked[0] != asked[1]


def test_rows_that_are_not_ok_are_left_out_and_counted(manifest, tmp_path, monkeypatch):
    from fedscale.server.caption import job
    from fedscale.server.caption.engines import Answer

    class Cutting:
        in_flight = 1

        def generate(self, requests):
            return [Answer("red", "length" if int(request.key) % 4 == 0 else "stop", 1) for request in requests]

        def close(self):
            pass

    monkeypatch.setattr(job, "make_engine", lambda config: Cutting())
    config, run = captioned(manifest, tmp_path / "run")
    session = Session()
    summary = pretrain.run(config, run, session)
    assert (summary["images"], summary["skipped"]) == (27, 9)
    assert any("9 captioned images" in line for line in session.reporter.lines)


def test_without_captions_the_error_says_which_stage_to_run(manifest, tmp_path):
    with pytest.raises(UserError, match="run `fedscale caption`"):
        pretrain.run(config_of(manifest), RunFolder(tmp_path / "run"), Session())


def test_a_loss_that_is_not_finite_ends_with_a_clear_line(manifest, tmp_path):
    config, run = captioned(manifest, tmp_path / "run", lr=1e30, warmup=0.0, clip_grad_norm=0.0)
    with pytest.raises(UserError, match=r"loss is not finite at step .*lower pretrain.lr"):
        pretrain.run(config, run, Session())


def test_a_checkpoint_of_other_captions_is_refused(manifest, tmp_path):
    config, run = captioned(manifest, tmp_path / "run")
    with pytest.raises(Stopped):
        pretrain.run(config, run, Session(stop=StopAfter(2)))
    longer = dataclasses.replace(config, pretrain=dataclasses.replace(config.pretrain, epochs=3))
    with pytest.raises(UserError, match="a checkpoint of 12 steps in all"):
        pretrain.run(longer, run, Session())


def test_the_contrastive_loss_needs_descriptions(manifest, tmp_path):
    config, run = captioned(manifest, tmp_path / "run", contrastive_weight=1.0)
    config = dataclasses.replace(
        config, caption=dataclasses.replace(config.caption, kinds=("conversation",), dir=str(tmp_path))
    )
    caption.run(config, run, Session())
    with pytest.raises(UserError, match=r"caption.kinds must hold description"):
        pretrain.run(config, run, Session())


def test_bf16_trains(manifest, tmp_path):
    config, run = captioned(manifest, tmp_path / "run", mixed_precision="bf16", alpha=AlphaConfig("cosine"))
    assert np.isfinite(pretrain.run(config, run, Session())["loss"])


def test_the_probe_compares_both_starts_and_lies_beside_the_export(manifest, tmp_path):
    probe = ProbeConfig(fractions=(0.2, 1.0), steps=5, batch_size=4)
    config, run = captioned(manifest, tmp_path / "run", probe=probe)
    summary = pretrain.run(config, run, Session())
    rows = files.read_json(run.stage("pretrain") / "probe.json")
    assert rows == summary["probe"]
    assert [(row["fraction"], row["images"]) for row in rows] == [(0.2, 6), (1.0, 24)]
    assert all(0 <= row[name] <= 100 for row in rows for name in ("scratch", "pretrained"))


def test_a_stop_during_the_probe_keeps_the_export(manifest, tmp_path):
    config, run = captioned(manifest, tmp_path / "run", probe=ProbeConfig(fractions=(1.0,), steps=2, batch_size=4))
    with pytest.raises(Stopped, match="probe"):
        pretrain.run(config, run, Session(stop=StopAfter(13)))  # twelve steps, then the probe
    assert export(run)
    assert pretrain.run(config, run, Session())["probe"]


def test_the_keyword_control_trains_f_as_a_classifier_on_the_same_images_for_the_same_steps(manifest, tmp_path):
    config, run = captioned(manifest, tmp_path / "run", objective="keyword", augment="none", epochs=4)
    summary = pretrain.run(config, run, Session())
    assert (summary["steps"], summary["images"], summary["skipped"]) == (24, 36, 0)
    student = initial_model(config, 3)
    batch = next(PairStream(config, manifest, run, WORDS).batches(0, 6))[0]
    assert batch.labels.tolist() == [int(image.float().mean((0, 1)).argmax()) for image in batch.images]
    shown = normalise(batch.images, config.data.mean, config.data.std)
    rows = files.read_jsonl(run.stage("pretrain") / "metrics.jsonl")
    expected = F.cross_entropy(student.train()(shown), batch.labels).item()
    assert rows[0]["loss"] == pytest.approx(expected, rel=1e-5) and rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert not {"alpha", "lm", "feature"} & rows[0].keys()
    found = export(run)
    assert found.keys() == student.state_dict().keys()
    assert not torch.equal(found["classifier.weight"], student.state_dict()["classifier.weight"])
    config, beside = captioned(manifest, tmp_path / "beside", augment="none", epochs=4)
    stream = PairStream(config, manifest, beside)
    assert next(stream.batches(0, 6))[0].keys == batch.keys, "the images of each step are those of the method"


def test_the_keyword_loss_is_a_mean_over_the_step_however_it_is_cut(manifest, tmp_path):
    exports = []
    for accumulation in (1, 3):
        config, run = captioned(
            manifest, tmp_path / f"cut{accumulation}", objective="keyword", accumulation=accumulation, epochs=1
        )
        model = dataclasses.replace(config.model, norm="group")  # whose images do not touch one another
        pretrain.run(dataclasses.replace(config, model=model), run, Session())
        exports.append(export(run))
    for name, tensor in exports[0].items():
        assert torch.allclose(tensor, exports[1][name], atol=1e-4), name


def test_images_whose_keyword_is_no_class_are_left_out_and_counted(manifest, tmp_path):
    config, run = captioned(manifest, tmp_path / "run", objective="keyword")
    dataclasses.replace(manifest, class_names=("red", "Green", "violet")).save()
    session = Session()
    summary = pretrain.run(config, run, session)
    assert (summary["images"], summary["skipped"]) == (24, 12)
    assert summary["steps"] == 12, "as many as with all images"
    assert "pretrain: 12 captioned images are left out (12 without a class as keyword)" in session.reporter.lines
    dataclasses.replace(manifest, class_names=("cat", "dog", "cow")).save()
    with pytest.raises(UserError, match=r"none of 36 captioned images has a class as its keyword \(cat, dog, cow, …"):
        pretrain.run(config, RunFolder(tmp_path / "run"), Session())
