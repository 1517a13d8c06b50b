"""Captioning: one row a key, in order, published shard by shard, never twice and never half."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from fedscale import files
from fedscale.config.schema import Config
from fedscale.data.images import encode_png
from fedscale.data.manifest import Manifest, ShardInfo
from fedscale.data.shards import Sample, write_shard
from fedscale.errors import Stopped, UserError
from fedscale.runs import RunFolder
from fedscale.server.caption import run, sidecar, stage
from fedscale.server.caption.engines import Answer
from fedscale.server.caption.engines.hf import HfEngine
from fedscale.server.caption.engines.template import TemplateEngine
from fedscale.session import Session

WORDS = ("circle", "arrow")
TEMPLATE = {"engine": "template", "batch_size": 2}


def make_pool(root: Path, shards: list[list[Sample]]) -> Manifest:
    infos = []
    for number, samples in enumerate(shards):
        file = f"pool/{number:05d}.tar"
        written = write_shard(root / file, samples)
        infos.append(ShardInfo(file, written.samples, written.bytes, written.sha256, {}))
    manifest = Manifest(root, "pool", WORDS, "f" * 16, {"pool": tuple(infos)}, {})
    manifest.save()
    return manifest


def sample(number: int, image: bytes | None = None, keyword: str | None = None) -> Sample:
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Sample(f"{number:08d}", image or encode_png(pixels), "png", keyword=keyword or WORDS[number % 2])


@pytest.fixture
def pool(tmp_path: Path) -> Manifest:
    return make_pool(tmp_path / "shards", [[sample(n) for n in range(5 * s, 5 * s + 5)] for s in range(3)])


def config_of(manifest: Manifest, **caption) -> Config:
    config = Config(name="t")
    data = dataclasses.replace(config.data, dir=str(manifest.root))
    return dataclasses.replace(
        config, data=data, caption=dataclasses.replace(config.caption, **{**TEMPLATE, **caption})
    )


def caption(manifest: Manifest, tmp_path: Path, session: Session | None = None, **settings) -> dict:
    return run(config_of(manifest, **settings), RunFolder(tmp_path / "run"), session or Session())


class FakeEngine:
    """Answers with the key, ends as told, and may ask for a stop after some batches."""

    def __init__(self, session: Session, stop_after: int = 0, answers: dict[str, Answer] | None = None) -> None:
        self.session, self.stop_after, self.answers, self.batches = session, stop_after, answers or {}, 0

    def answer(self, requests):
        self.batches += 1
        if self.batches == self.stop_after:
            self.session.stop.set()
        default = {r.key: Answer(f"a {r.keyword}", "stop", 3) for r in requests}
        return [{k: {**default, **self.answers}[r.key] for k in ("description", "conversation")} for r in requests]


@pytest.fixture
def fake(monkeypatch):
    def install(session: Session | None = None, **settings) -> tuple[Session, FakeEngine]:
        session = session or Session()
        engine = FakeEngine(session, **settings)
        monkeypatch.setattr(stage, "make_engine", lambda config: engine)
        return session, engine

    return install


def test_each_shard_has_one_row_a_key_in_order_and_its_marker_last(pool, tmp_path):
    summary = caption(pool, tmp_path)
    folder = tmp_path / "run" / "caption"
    for number, shard in enumerate(pool.shards("pool")):
        rows = sidecar.read(folder, shard)
        assert [row.key for row in rows] == [f"{5 * number + i:08d}" for i in range(5)]
        assert all(row.status == "ok" and set(row.texts) == set(Config().caption.kinds) for row in rows)
        marker = files.read_json(folder / f"{number:05d}.done.json")
        assert (marker["n_in"], marker["n_ok"], marker["input_sha256"]) == (5, 5, shard.sha256)
    assert summary["images"] == summary["ok"] == 15
    assert summary["class_naming_accuracy"] == 100.0
    assert "an arrow" in sidecar.read(folder, pool.shards("pool")[0])[1].texts["description"]


def test_a_second_run_captions_nothing_and_says_the_same(pool, tmp_path, fake):
    first = caption(pool, tmp_path)
    _, engine = fake()
    assert caption(pool, tmp_path) == first
    assert engine.batches == 0


def test_max_images_takes_whole_shards_and_more_can_be_added_later(pool, tmp_path):
    assert caption(pool, tmp_path, max_images=6)["images"] == 10
    assert caption(pool, tmp_path, max_images=0)["images"] == 15


def test_a_torn_or_altered_sidecar_is_done_again(pool, tmp_path):
    caption(pool, tmp_path)
    path = tmp_path / "run" / "caption" / "00001.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-7])
    torn = sidecar.read(path.parent, pool.shards("pool")[1])
    assert len(torn) == 4, "the torn last line is dropped"
    caption(pool, tmp_path)
    assert path.read_text() == whole


def test_a_marker_cut_short_counts_as_not_captioned(pool, tmp_path):
    caption(pool, tmp_path)
    path = tmp_path / "run" / "caption" / "00002.done.json"
    whole = path.read_text()
    path.write_text(whole[:40])
    caption(pool, tmp_path)
    assert path.read_text() == whole


def test_captions_of_another_config_are_refused_by_key(pool, tmp_path):
    kept = str(tmp_path / "beside")
    caption(pool, tmp_path, dir=kept)
    with pytest.raises(UserError, match=r"caption.kinds was .*choose another caption.dir"):
        caption(pool, tmp_path, dir=kept, kinds=("conversation",))


def test_captions_of_other_images_are_refused(pool, tmp_path):
    caption(pool, tmp_path)
    other = make_pool(tmp_path / "other", [[sample(n) for n in range(100, 105)]])
    with pytest.raises(UserError, match="sha256 of the shard"):
        caption(other, tmp_path)


def test_a_corrupt_image_is_a_row_counted_and_named(tmp_path):
    samples = [sample(n, b"not a png" if n == 3 else None) for n in range(200)]
    pool, session = make_pool(tmp_path / "shards", [samples]), Session()
    summary = caption(pool, tmp_path, session, batch_size=64)
    rows = sidecar.read(tmp_path / "run" / "caption", pool.shards("pool")[0])
    assert len(rows) == 200 and rows[3].status == "decode_error" and rows[3].error
    assert summary["decode_error"] == 1 and summary["decode_errors"] == ["pool/00000.tar:00000003"]
    assert any("00000003" in line for line in session.reporter.lines)


def test_too_many_corrupt_images_are_an_error(tmp_path):
    pool = make_pool(tmp_path / "shards", [[sample(n, b"no" if n < 2 else None) for n in range(10)]])
    with pytest.raises(UserError, match=r"2 of 10 images cannot be decoded.*data.max_corrupt"):
        caption(pool, tmp_path)


def test_cut_and_empty_texts_are_not_ok(pool, tmp_path, fake):
    fake(answers={"00000001": Answer("a long", "length", 9), "00000002": Answer("", "stop", 1)})
    summary = caption(pool, tmp_path)
    assert (summary["ok"], summary["truncated"], summary["empty"]) == (13, 1, 1)
    statuses = [row.status for row in sidecar.read(tmp_path / "run" / "caption", pool.shards("pool")[0])]
    assert statuses == ["ok", "truncated", "empty", "ok", "ok"]


def test_a_stop_keeps_finished_shards_and_the_rest_is_done_by_the_next_run(pool, tmp_path, fake):
    session, engine = fake(stop_after=5)  # three batches a shard: in the middle of the second
    with pytest.raises(Stopped):
        caption(pool, tmp_path, session)
    folder = tmp_path / "run" / "caption"
    assert engine.batches == 5
    assert sorted(path.name for path in folder.iterdir()) == ["00000.done.json", "00000.jsonl"]
    _, engine = fake()
    assert caption(pool, tmp_path)["ok"] == 15
    assert engine.batches == 6, "the first shard is not captioned twice"


def test_a_shard_that_is_not_the_manifests_is_refused(pool, tmp_path):
    with open(pool.path(pool.shards("pool")[1]), "ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match=r"00001.tar: sha256 is"):
        caption(pool, tmp_path)


def test_without_a_pool_the_error_says_how_to_get_one(pool, tmp_path):
    none = dataclasses.replace(pool, splits={"train": pool.splits["pool"]})
    none.save()
    with pytest.raises(UserError, match="open_pool"):
        caption(none, tmp_path)


def test_rows_survive_unusual_line_separators(pool, tmp_path, fake):
    text = "one\u2028two\x85three\nfour"
    fake(answers={"00000001": Answer(text, "stop", 9)})
    caption(pool, tmp_path)
    assert sidecar.read(tmp_path / "run" / "caption", pool.shards("pool")[0])[1].texts["description"] == text


def test_the_template_engine_needs_a_keyword():
    engine = TemplateEngine(Config().caption)
    request = stage.Request("7", None, None)
    with pytest.raises(UserError, match="image 7 has no crawl keyword"):
        engine.answer([request])


@pytest.mark.parametrize(
    ("text", "keyword", "named"),
    [
        ("two circles.", "circle", True),
        ("a semicircle", "circle", False),
        ("A Golden Retriever", "golden_retriever", True),
        ("a car", "automobile", False),
    ],
)
def test_naming_is_a_match_of_whole_words(text, keyword, named):
    assert sidecar.Row("0", "ok", keyword, {"conversation": text}).named is named


@dataclasses.dataclass
class Generated:
    text: str
    finish: str
    tokens: int


class FakeMllm:
    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def generate(self, images, prompts, max_new_tokens, temperature, seed):
        self.calls.append((tuple(images.shape), prompts[0], max_new_tokens, temperature, seed))
        return [Generated(f" {image.float().mean():.1f} ", "stop", 2) for image in images]


def test_hf_answers_in_order_with_one_size_a_batch(pool):
    mllm = FakeMllm()
    config = config_of(pool, engine="hf", kinds=("description", "reasoning"), max_new_tokens=5)
    images = [np.full((size, size, 3), value, np.uint8) for size, value in ((4, 1), (6, 2), (4, 3))]
    requests = [stage.Request(str(i), stage.torch.from_numpy(image), None) for i, image in enumerate(images)]
    answers = HfEngine(config, mllm).answer(requests)
    assert [a["reasoning"].text for a in answers] == ["1.0", "2.0", "3.0"]
    assert sorted(call[0] for call in mllm.calls) == [(1, 6, 6, 3)] * 2 + [(2, 4, 4, 3)] * 2
    assert {call[1] for call in mllm.calls} == {config.caption.prompts.description, config.caption.prompts.reasoning}
    assert len({call[4] for call in mllm.calls}) == 4 and {call[2] for call in mllm.calls} == {5}


def test_sampled_captions_depend_on_seed_and_batch_and_greedy_ones_do_not(pool):
    greedy, sampled = config_of(pool, engine="hf"), config_of(pool, engine="hf", temperature=1.0)
    assert "caption.seed" not in sidecar.settings(greedy) and "caption.batch_size" not in sidecar.settings(greedy)
    assert "caption.seed" in sidecar.settings(sampled) and "caption.batch_size" in sidecar.settings(sampled)
    assert json.loads(json.dumps(sidecar.settings(sampled))) == sidecar.settings(sampled)
