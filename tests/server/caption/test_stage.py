"""Captioning: one row a key, in order, published shard by shard, never twice and never half."""

import dataclasses

import pytest

from fedscale import files
from fedscale.config.schema import Config
from fedscale.errors import Stopped, UserError
from fedscale.server.caption import job, shard
from fedscale.server.caption.engines import Answer
from fedscale.session import Session
from tests.server.caption.support import Captioned, make_pool, sample


def test_each_shard_has_one_row_a_key_in_order_and_its_marker(captioned):
    summary = captioned.caption()
    for number, info in enumerate(captioned.manifest.shards("pool")):
        rows = captioned.rows(number)
        assert [row.key for row in rows] == [f"{5 * number + i:08d}" for i in range(5)]
        assert all(row.status == "ok" and set(row.texts) == set(Config().caption.kinds) for row in rows)
        marker = files.read_json(captioned.folder / f"{number:05d}.done.json")
        assert (marker["n_in"], marker["n_ok"], marker["input_sha256"]) == (5, 5, info.sha256)
        assert set(marker["seconds"]) == {"read", "generate", "write"}
    assert summary["images"] == summary["ok"] == 15
    assert summary["class_naming_accuracy"] == 100.0
    assert "an arrow" in captioned.rows()[1].text("description")
    assert not list(captioned.folder.glob("*.part.jsonl")), "the journals are gone"


def test_a_row_says_what_was_asked_answered_and_how_often(captioned, fake):
    fake()
    captioned.caption(engine="hf")
    row = captioned.rows(engine="hf")[0]
    prompts = Config().caption.prompts
    assert row.questions == {
        "description": [prompts.description[0]],
        "conversation": [prompts.conversation[0][0]],
        "reasoning": [prompts.reasoning[0]],
    }
    assert row.texts["reasoning"] == ["a circle"] and row.finish["reasoning"] == "stop"
    assert (row.tokens["reasoning"], row.attempts["reasoning"], row.seed) == (3, 1, Config().caption.seed)


def test_a_second_run_captions_nothing_and_says_the_same(captioned, fake):
    first = captioned.caption()
    _, engine = fake()
    assert captioned.caption() == first
    assert engine.calls == 0


def test_max_images_takes_whole_shards_and_more_can_be_added_later(captioned):
    assert captioned.caption(max_images=6)["images"] == 10
    assert captioned.caption(max_images=0)["images"] == 15


def test_a_torn_sidecar_is_done_again_and_an_altered_one_is_never_read(captioned):
    captioned.caption()
    path = captioned.folder / "00001.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-7])
    captioned.caption()
    assert path.read_text() == whole
    path.write_text(whole.replace("arrow", "ARROW"))
    with pytest.raises(UserError, match=r"00001.jsonl: altered since it was captioned"):
        captioned.rows(1)


def test_a_marker_cut_short_counts_as_not_captioned(captioned):
    captioned.caption()
    path = captioned.folder / "00002.done.json"
    whole = files.read_json(path)
    path.write_text(path.read_text()[:40])
    captioned.caption()
    assert {**files.read_json(path), "seconds": 0} == {**whole, "seconds": 0}


def test_captions_of_another_config_are_refused_by_key_unless_they_may_go(captioned, tmp_path):
    kept = str(tmp_path / "beside")
    captioned.caption(dir=kept)
    with pytest.raises(UserError, match=r"3 shards .*caption.kinds was .*caption.overwrite=true"):
        captioned.caption(dir=kept, kinds=("conversation",))
    assert set(captioned.rows(dir=kept)[0].texts) == set(Config().caption.kinds), "nothing was lost"
    captioned.caption(dir=kept, kinds=("conversation",), overwrite=True)
    assert set(captioned.rows(dir=kept, kinds=("conversation",))[0].texts) == {"conversation"}


def test_captions_of_other_images_are_refused(captioned, tmp_path):
    captioned.caption()
    other = Captioned(make_pool(tmp_path / "other", [[sample(n) for n in range(100, 105)]]), captioned.run.path)
    with pytest.raises(UserError, match="of other images: this shard's bytes differ"):
        other.caption()


def test_unreadable_images_are_rows_counted_and_named(tmp_path):
    samples = [sample(n, b"not a png" if n == 3 else None) for n in range(200)]
    captioned, session = Captioned(make_pool(tmp_path / "shards", [samples]), tmp_path / "run"), Session()
    summary = captioned.caption(session, flush_every=64)
    rows = captioned.rows()
    assert len(rows) == 200 and rows[3].status == "decode_error" and rows[3].error
    assert summary["decode_error"] == 1 and summary["unreadable"] == ["pool/00000.tar:00000003"]
    assert any("00000003" in line for line in session.reporter.lines)


def test_an_image_of_too_many_pixels_is_not_decoded(captioned):
    with pytest.raises(UserError, match=r"15 of 15 images cannot be decoded or are too large"):
        captioned.caption(max_pixels=63)
    assert {row.status for row in captioned.rows(max_pixels=63)} == {"too_large"}


def test_too_many_corrupt_images_are_an_error(tmp_path):
    pool = make_pool(tmp_path / "shards", [[sample(n, b"no" if n < 2 else None) for n in range(10)]])
    with pytest.raises(UserError, match=r"2 of 10 images cannot be decoded.*data.max_corrupt"):
        Captioned(pool, tmp_path / "run").caption()


def test_bad_texts_are_not_ok_and_the_worst_one_counts(captioned, fake):
    def only_reasoning_fails(request):
        return Answer("", "stop", 1) if request.kind == "reasoning" else Answer("fine", "stop", 1)

    told = {
        "00000001": Answer("a long", "length", 9),
        "00000002": only_reasoning_fails,
        "00000003": Answer("and so on " * 8, "stop", 30),
    }
    fake(answers=told)
    summary = captioned.caption()
    assert (summary["ok"], summary["truncated"], summary["empty"], summary["repeated"]) == (12, 1, 1, 1)
    assert [row.status for row in captioned.rows()] == ["ok", "truncated", "empty", "repeated", "ok"]
    assert captioned.rows()[2].texts == {"description": ["fine"], "conversation": ["fine"], "reasoning": []}


def test_a_stop_keeps_finished_groups_and_the_next_run_does_only_the_rest(captioned, fake):
    session, engine = fake(stop_after=5)  # three groups a shard: in the middle of the second
    with pytest.raises(Stopped):
        captioned.caption(session)
    assert engine.calls == 5 and engine.closed
    assert not (captioned.folder / "00001.done.json").exists()
    _, engine = fake()
    assert captioned.caption()["ok"] == 15
    assert engine.calls == 4, "nothing is captioned twice"


def test_a_shard_that_is_not_the_manifests_fails_and_the_others_are_captioned(captioned):
    with open(captioned.manifest.path(captioned.manifest.shards("pool")[1]), "ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match=r"1 of 3 shards failed \(pool/00001.tar: .*caption.max_failed_shards=0.334"):
        captioned.caption()
    assert len(captioned.rows(0)) == len(captioned.rows(2)) == 5
    summary = captioned.caption(max_failed_shards=0.334)
    assert summary["failed_shards"] == ["pool/00001.tar"] and summary["images"] == 10


def test_a_shard_copied_again_is_captioned_by_the_next_run(captioned):
    path = captioned.manifest.path(captioned.manifest.shards("pool")[1])
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    with pytest.raises(UserError, match="1 of 3 shards failed"):
        captioned.caption()
    path.write_bytes(whole)
    assert captioned.caption()["images"] == 15
    assert not list(captioned.folder.glob("*.failed.json"))


def test_a_shard_in_which_workers_die_is_given_up_in_the_end(captioned, fake):
    class Deadly:
        in_flight = 1

        def generate(self, requests):
            raise KeyboardInterrupt  # as little of an ordinary error as kill -9

        def close(self):
            pass

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
            patch.setattr(job, "make_engine", lambda config: Deadly())
            captioned.caption(max_attempts=2)
    _, engine = fake()
    with pytest.raises(UserError, match=r"1 of 3 shards failed .*2 workers died in it"):
        captioned.caption(max_attempts=2)
    assert len(captioned.rows(1)) == 5 and engine.calls == 6
    assert captioned.caption(max_attempts=2, retry_failed=True)["images"] == 15


def test_without_a_pool_the_error_says_how_to_get_one(captioned):
    pool = captioned.manifest
    none = dataclasses.replace(pool, splits={"train": pool.splits["pool"]})
    none.save()
    with pytest.raises(UserError, match="open_pool"):
        captioned.caption()


def test_rows_survive_unusual_line_separators(captioned, fake):
    text = "one\u2028two\x85three\nfour"
    fake(answers={"00000001": Answer(text, "stop", 9)})
    captioned.caption()
    assert captioned.rows()[1].text("description") == text


def test_a_broken_engine_blows_the_fuse_and_keeps_what_was_good(captioned, fake):
    def broken(request):
        return Answer("", "error", 0, error="503 Service Unavailable")

    session, engine = fake(answers={f"{n:08d}": broken for n in range(3, 15)})
    with pytest.raises(UserError, match=r"failed at 4 images in a row \(the last: 503 Service Unavailable\)"):
        captioned.caption(session, fuse=4, retry_temperatures=())
    assert engine.closed
    _, engine = fake()
    summary = captioned.caption(retry_temperatures=(), fuse=4)
    assert (summary["ok"], summary["generation_error"]) == (13, 2), "the run began in a shard that was then finished"
    assert {request.key for request in engine.requests} == {f"{n:08d}" for n in range(5, 15)}
    assert captioned.caption(retry_temperatures=(), retry_failed=True)["ok"] == 15


def test_failed_rows_are_tried_again_on_request_alone(captioned, fake):
    fake(answers={"00000001": Answer("", "stop", 1), "00000007": Answer("cut", "length", 1)})
    assert captioned.caption()["ok"] == 13
    before = (captioned.folder / "00002.done.json").read_bytes()
    _, engine = fake()
    assert captioned.caption()["ok"] == 13 and engine.calls == 0
    summary = captioned.caption(retry_failed=True)
    assert summary["ok"] == 15
    assert {request.key for request in engine.requests} == {"00000001", "00000007"}
    assert {request.temperature for request in engine.requests} == {Config().caption.retry_temperatures[-1]}
    assert captioned.rows()[1].attempts["description"] == 4
    assert (captioned.folder / "00002.done.json").read_bytes() == before


def test_a_retry_cut_short_loses_no_row(captioned, fake):
    fake(answers={"00000001": Answer("", "stop", 1)})
    captioned.caption()
    session, _ = fake(stop_after=1)
    session.stop.set()
    with pytest.raises(Stopped):
        captioned.caption(session, retry_failed=True)
    _, engine = fake()
    assert captioned.caption()["ok"] == 14 and engine.calls == 0, "until then its captions stay as they were"
    assert captioned.caption(retry_failed=True)["ok"] == 15
    assert {request.key for request in engine.requests} == {"00000001"}
    assert {request.temperature for request in engine.requests} == {Config().caption.retry_temperatures[-1]}


def test_a_text_is_not_tried_for_ever(captioned, fake):
    fake(answers={"00000001": Answer("", "stop", 1)})
    captioned.caption(retry_temperatures=(), max_attempts=2)
    for expected in (3, 0):  # one attempt a kind, then none
        _, engine = fake(answers={"00000001": Answer("", "stop", 1)})
        captioned.caption(retry_temperatures=(), max_attempts=2, retry_failed=True)
        assert len(engine.requests) == expected


def test_near_duplicates_of_test_images_are_rows_but_never_captioned(captioned, fake):
    files.write_jsonl(
        captioned.manifest.root / "near_duplicates.jsonl", [{"shard": "pool/00000.tar", "key": "00000002"}]
    )
    dataclasses.replace(captioned.manifest, near_duplicates={"count": 1}).save()
    _, engine = fake()
    summary = captioned.caption()
    assert (summary["ok"], summary["near_duplicate"]) == (14, 1)
    assert [row.status for row in captioned.rows()] == ["ok", "ok", "near_duplicate", "ok", "ok"]
    assert "00000002" not in {request.key for request in engine.requests}


def test_a_retry_of_a_shard_that_broke_meanwhile_keeps_its_captions(captioned, fake):
    fake(answers={"00000001": Answer("", "stop", 1)})
    captioned.caption()
    path = captioned.manifest.path(captioned.manifest.shards("pool")[0])
    whole, before = path.read_bytes(), (captioned.folder / "00000.jsonl").read_bytes()
    path.write_bytes(whole[:1500])
    session, _ = fake()
    captioned.caption(session, retry_failed=True)
    assert any("its captions stay as they are" in line for line in session.reporter.lines)
    assert (captioned.folder / "00000.jsonl").read_bytes() == before and len(captioned.rows()) == 5
    path.write_bytes(whole)
    assert captioned.caption(retry_failed=True)["ok"] == 15


def test_a_retry_leaves_alone_what_no_engine_can_mend(tmp_path, fake):
    samples = [sample(n, b"no" if n == 3 else None) for n in range(40)]
    captioned = Captioned(make_pool(tmp_path / "shards", [samples]), tmp_path / "run")
    captioned.caption()
    marker = (captioned.folder / "00000.done.json").read_bytes()
    _, engine = fake()
    captioned.caption(retry_failed=True)
    assert engine.calls == 0 and (captioned.folder / "00000.done.json").read_bytes() == marker


def test_a_mistake_in_the_config_is_no_fault_of_the_shard(captioned, fake, monkeypatch):
    def keyless(config):
        raise UserError("OPENAI_API_KEY is not set")

    for _ in range(4):
        with monkeypatch.context() as patch, pytest.raises(UserError, match="OPENAI_API_KEY"):
            patch.setattr(job, "make_engine", keyless)
            captioned.caption(max_attempts=2)
    fake()
    assert captioned.caption(max_attempts=2)["ok"] == 15


def test_of_a_large_group_all_rows_of_the_failing_run_are_made_again(tmp_path, fake):
    captioned = Captioned(make_pool(tmp_path / "shards", [[sample(n) for n in range(30)]]), tmp_path / "run")
    fake(answers={f"{n:08d}": Answer("", "error", 0, "503") for n in range(10, 30)})
    with pytest.raises(UserError, match="20 images in a row"):
        captioned.caption(flush_every=30, fuse=5, retry_temperatures=())
    _, engine = fake()
    assert captioned.caption(flush_every=30, fuse=5, retry_temperatures=())["ok"] == 30
    assert {request.key for request in engine.requests} == {f"{n:08d}" for n in range(10, 30)}


def test_a_stop_keeps_the_groups_that_are_being_answered(captioned, fake):
    session, engine = fake()
    engine.in_flight = 3
    engine.stop_after = 2
    with pytest.raises(Stopped):
        captioned.caption(session)
    answered = {request.key for request in engine.requests}
    _, engine = fake()
    assert captioned.caption()["ok"] == 15
    assert not answered & {request.key for request in engine.requests}, "nothing that was answered is asked again"


def test_groups_are_cut_by_pixels_too(captioned, fake, monkeypatch):
    monkeypatch.setattr(shard, "GROUP_PIXELS", 2 * 64)  # of 8 × 8
    _, engine = fake()
    captioned.caption(flush_every=100)
    assert engine.calls == 9, "two, two and one image of each of three shards"


def test_a_leased_shard_that_another_worker_took_is_let_go(captioned, fake):
    session, engine = fake()

    def robbed(request):
        path = captioned.folder / "00000.lease"
        if path.exists():
            path.write_text('{"owner": "another", "beat": 7}')
        return Answer("fine", "stop", 1)

    engine.answers = {"00000001": robbed}
    assert captioned.caption(session, leases=True, heartbeat=0.02) is None, "the shard is the other's to finish"
    assert any("taken over by another worker" in line for line in session.reporter.lines)
    assert not (captioned.folder / "00000.jsonl").exists() and len(captioned.rows(1)) == len(captioned.rows(2)) == 5
    fake()
    assert captioned.caption(leases=True, heartbeat=0.02)["ok"] == 15, "who never beat, and is cleared"
