"""Ranks read their own streams of real shards: together what one reads, resumed at any step, and no shard in vain."""

import dataclasses
import io
from collections import Counter
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedscale.config.schema import Config, FeaturesConfig, PretrainConfig
from fedscale.data.images import decode, fit_square
from fedscale.data.shards import Sample
from fedscale.errors import UserError
from fedscale.runs import stage_inputs
from fedscale.server.caption import join as join_module
from fedscale.server.caption.features import Stored
from fedscale.server.pretrain import batch as batch_module
from fedscale.server.pretrain import data as pretrain_data
from fedscale.server.pretrain import examples
from fedscale.server.pretrain.data import Batch, PairStream
from tests.server.caption.support import Captioned, make_pool, sample

SIZES = (1, 13, 5, 2, 11, 7)  # of the shards; 39 pairs
PAIRS = sum(SIZES)


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Captioned:
    monkeypatch.setattr(pretrain_data, "KEPT_BYTES", 0)
    return pool_of(tmp_path, SIZES)


def pool_of(folder: Path, sizes: tuple[int, ...]) -> Captioned:
    starts = [sum(sizes[:shard]) for shard in range(len(sizes))]
    shards = [[sample(number) for number in range(s, s + size)] for s, size in zip(starts, sizes, strict=True)]
    captioned = Captioned(make_pool(folder / "shards", shards), folder / "run")
    captioned.caption()
    return captioned


def config_of(pool: Captioned, **settings) -> Config:
    pretrain = PretrainConfig(**{"batch_size": 12, "streams": 4, **settings})
    return dataclasses.replace(pool.config(), pretrain=pretrain)


def stream_of(pool: Captioned, **settings) -> PairStream:
    return PairStream(config_of(pool, **settings), pool.manifest, pool.run)


def steps_of(stream: PairStream, number: int, start: int = 0, size: int = 12, **split) -> list[list[Batch]]:
    return list(islice(stream.batches(start, size, **split), number))


def keys(step: list[Batch]) -> list[str]:
    return [key for batch in step for _, key in batch.keys]


def same(first: Batch, second: Batch) -> bool:
    texts = first.keys == second.keys and first.dialogues == second.dialogues
    return texts and first.descriptions == second.descriptions and torch.equal(first.images, second.images)


def test_a_batch_holds_each_keys_own_image_and_texts(pool):
    step = steps_of(stream_of(pool), 1)[0][0]
    images = {s.key: s.image for s in (sample(number) for number in range(PAIRS))}
    for image, (shard, key), description in zip(step.images, step.keys, step.descriptions, strict=True):
        assert torch.equal(image, torch.tensor(fit_square(decode(images[key]), 32)))
        assert ("circle" if int(key) % 2 == 0 else "arrow") in description
        number = int(shard.removeprefix("pool/").removesuffix(".tar"))
        assert sum(SIZES[:number]) <= int(key) < sum(SIZES[: number + 1])


@pytest.mark.parametrize("streams", [1, 3, 4, 12])
def test_every_pair_comes_exactly_once_an_epoch(pool, streams):
    seen = [key for step in steps_of(stream_of(pool, streams=streams), 13) for key in keys(step)]
    epochs = [Counter(seen[start : start + PAIRS]) for start in range(0, 4 * PAIRS, PAIRS)]  # 13 · 12 = 4 · 39
    assert all(len(epoch) == PAIRS and set(epoch.values()) == {1} for epoch in epochs)


@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_together_see_what_one_sees_in_equally_many_steps(pool, world):
    stream = stream_of(pool)
    one = steps_of(stream, 8)
    ranks = [steps_of(stream, 8, rank=rank, world=world) for rank in range(world)]
    for number, step in enumerate(one):
        parts = [keys(rank[number]) for rank in ranks]
        assert sorted(chain(*parts)) == sorted(keys(step))
        assert all(len(part) in (3, 6) for part in parts), "whole streams of three pairs each"
    whole = {key: image for batch in one[3] for (_, key), image in zip(batch.keys, batch.images, strict=True)}
    for rank in ranks:
        for (_, key), image in zip(rank[3][0].keys, rank[3][0].images, strict=True):
            assert torch.equal(image, whole[key])


@pytest.mark.parametrize("world", [1, 3])
def test_micro_batches_are_the_same_for_any_number_of_ranks(pool, world):
    stream = stream_of(pool, streams=4, batch_size=14, accumulation=3)
    one = steps_of(stream, 6, size=14, accumulation=3)
    ranks = [steps_of(stream, 6, size=14, accumulation=3, rank=rank, world=world) for rank in range(world)]
    for number, step in enumerate(one):
        assert [len(batch) for batch in step] == [4, 5, 5]
        for micro, batch in enumerate(step):
            parts = [[key for _, key in rank[number][micro].keys] for rank in ranks]
            assert all(parts) and sorted(chain(*parts)) == sorted(key for _, key in batch.keys)
    plain = steps_of(stream, 6, size=14)
    assert [keys(step) for step in plain] == [keys(step) for step in one]


@pytest.mark.parametrize("shuffle_buffer", [1, 3, 256])
@pytest.mark.parametrize(("start", "world"), [(1, 1), (3, 1), (4, 2), (9, 3), (31, 4)])
def test_resuming_at_a_step_gives_what_would_have_come_there(pool, start, world, shuffle_buffer):
    stream = stream_of(pool, shuffle_buffer=shuffle_buffer)
    for rank in range(world):
        straight = steps_of(stream, start + 5, rank=rank, world=world)[start:]
        resumed = steps_of(stream, 5, start=start, rank=rank, world=world)
        assert all(
            same(a, b) for one, other in zip(straight, resumed, strict=True) for a, b in zip(one, other, strict=True)
        )


def test_a_stream_is_mixed_through_its_own_buffer_however_many_there_are(tmp_path):
    pool = pool_of(tmp_path, (48,))  # one shard: its order is not drawn, a stream of twelve has four pairs of it
    in_turn = [f"{number:08d}" for number in range(48)]

    def shown(**settings) -> list[str]:
        return keys(steps_of(stream_of(pool, streams=12, **settings), 1, size=48)[0])

    by_stream = [in_turn[4 * stream : 4 * stream + 4] for stream in range(12)]
    assert [shown(shuffle_buffer=1)[stream::12] for stream in range(12)] == by_stream
    mixed = [shown()[stream::12] for stream in range(12)]
    assert [sorted(pairs) for pairs in mixed] == by_stream
    assert sum(pairs != given for pairs, given in zip(mixed, by_stream, strict=True)) > 6


def test_the_position_tells_epochs_and_samples(pool):
    stream = stream_of(pool)
    assert stream.position(0, 12) == {"epoch": 0, "samples": 0, "samples_seen": 0}
    assert stream.position(7, 12) == {"epoch": 2, "samples": 84 - 2 * PAIRS, "samples_seen": 84}


def test_one_shard_serves_more_ranks_than_there_are_shards(tmp_path):
    pool = pool_of(tmp_path, (17,))
    stream = stream_of(pool)
    assert stream.note == "1 shards for pretrain.streams=4: some are read by several streams, in parts"
    ranks = [steps_of(stream, 17, rank=rank, world=4) for rank in range(4)]
    assert all(len(keys(step)) == 3 for rank in ranks for step in rank)
    seen = Counter(key for rank in ranks for step in rank for key in keys(step))
    assert set(seen.values()) == {12}, "17 · 12 pairs are twelve epochs"


def test_enough_shards_need_no_note(pool):
    assert stream_of(pool).note == ""


def opened_by(stream: PairStream, monkeypatch: pytest.MonkeyPatch, steps: int, **split) -> list[str]:
    opened: list[str] = []
    real = join_module.read_shard
    with monkeypatch.context() as patch:
        patch.setattr(join_module, "read_shard", lambda url: opened.append(Path(url).name) or real(url))
        steps_of(stream, steps, **split)
    return opened


def test_a_rank_opens_only_the_shards_of_its_streams(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain_data, "KEPT_BYTES", 0)
    pool = pool_of(tmp_path, (6,) * 16)  # four shards a stream: nothing is cut
    stream = stream_of(pool)
    ranks = [opened_by(stream, monkeypatch, 8, rank=rank, world=4) for rank in range(4)]  # one epoch
    assert [len(opened) for opened in ranks] == [4] * 4
    assert len(set().union(*ranks)) == 16


def test_each_cut_makes_one_more_read_and_no_more(pool, monkeypatch):
    opened = opened_by(stream_of(pool), monkeypatch, 3)
    assert set(Counter(opened)) == {f"{number:05d}.tar" for number in range(len(SIZES))}
    assert len(opened) <= len(SIZES) + 3


def test_resuming_does_not_open_what_was_shown_nor_decode_it(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain_data, "KEPT_BYTES", 0)
    pool = pool_of(tmp_path, (6,) * 16)
    stream = stream_of(pool, shuffle_buffer=2)
    decoded: list[int] = []
    real = batch_module.decode
    monkeypatch.setattr(batch_module, "decode", lambda data, **settings: decoded.append(1) or real(data, **settings))
    opened = opened_by(stream, monkeypatch, 1, start=6)  # of eight; 18 of each stream's 24 pairs are gone
    assert len(opened) <= 8 and len(decoded) == 12


def test_what_is_kept_in_memory_is_read_once_and_changes_nothing(pool, monkeypatch):
    plain = steps_of(stream_of(pool), 10)
    monkeypatch.setattr(pretrain_data, "KEPT_BYTES", 2**28)
    stream = stream_of(pool)
    opened: list[str] = []
    real = join_module.read_shard
    monkeypatch.setattr(join_module, "read_shard", lambda url: opened.append(url) or real(url))
    kept = steps_of(stream, 10)
    assert len(opened) == len(SIZES)
    assert all(same(a[0], b[0]) for a, b in zip(plain, kept, strict=True))


def test_a_truncated_shard_is_an_error_on_the_rank_that_reads_it_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain_data, "KEPT_BYTES", 0)
    pool = pool_of(tmp_path, (6,) * 4)  # a shard a stream
    stream = stream_of(pool)
    reader = next(
        rank for rank in range(4) if "pool/00002.tar" in steps_of(stream, 1, rank=rank, world=4)[0][0].keys[0]
    )
    path = pool.manifest.path(pool.manifest.shards("pool")[2])
    path.write_bytes(path.read_bytes()[:-600])  # the end alone: all images are whole, and the last bytes are read too
    for rank in range(4):
        if rank != reader:
            steps_of(stream, 2, rank=rank, world=4)  # an epoch
    with pytest.raises(UserError, match=r"00002.tar: not a whole shard .*copy it again"):
        steps_of(stream, 3, rank=reader, world=4)  # an epoch to its end


def test_too_few_streams_for_the_ranks_or_workers_are_refused_with_the_numbers(pool):
    with pytest.raises(UserError, match=r"pretrain.streams=4: expected one or more for each of 5 ranks; use .*=5"):
        stream_of(pool).batches(0, 12, rank=0, world=5)
    with pytest.raises(UserError, match=r"pretrain.workers=3: expected at most 2, .*streams=4 over 2 ranks"):
        stream_of(pool, workers=3).batches(0, 12, rank=0, world=2)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"batch_size": 7}, r"pretrain.batch_size=7: expected pretrain.streams=8 times pretrain.accumulation=1 images"),
        ({"batch_size": 16, "accumulation": 3}, r"pretrain.batch_size=16: .*=8 times pretrain.accumulation=3 images"),
        ({"streams": 0}, r"pretrain.streams=0: expected 1 or more"),
        ({"shuffle_buffer": 0}, r"pretrain.shuffle_buffer=0: expected 1 or more"),
        ({"accumulation": 0}, r"pretrain.accumulation=0: expected 1 or more"),
        ({"workers": -1}, r"pretrain.workers=-1: expected 0 or more"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, line):
    with pytest.raises(UserError, match=line):
        PretrainConfig(**settings)


def test_streams_are_part_of_what_determines_a_result_and_workers_are_not(pool):
    changed = ({}, {"workers": 3}, {"streams": 6}, {"shuffle_buffer": 255})
    inputs = [stage_inputs(config_of(pool, **settings), "pretrain") for settings in changed]
    assert inputs[0] == inputs[1] and all(inputs[0] != other for other in inputs[2:])


def photo(number: int) -> bytes:
    y, x = np.mgrid[0:288, 0:320]
    buffer = io.BytesIO()
    Image.fromarray(np.stack([x * 0.7, y * 0.8, (x + y + 40 * number) * 0.3], -1).astype(np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize("stored", [False, True])
def test_large_jpegs_are_drafted_unless_the_teacher_saw_them_whole(tmp_path, monkeypatch, stored):
    shards = [[Sample(f"{n:08d}", photo(n), "jpg", keyword="circle") for n in range(6)]]
    pool = Captioned(make_pool(tmp_path / "shards", shards), tmp_path / "run")
    pool.caption()
    config = config_of(pool, batch_size=6, streams=2, teacher="stored" if stored else "live")
    if stored:

        class Store:
            def __init__(self, *_):
                pass

            def read(self, entry):
                return Stored(torch.zeros(6, 1, 3), torch.zeros(6, 3))

        monkeypatch.setattr(examples, "FeatureStore", Store)
        config = dataclasses.replace(
            config, caption=dataclasses.replace(config.caption, features=FeaturesConfig(enabled=True))
        )
    (batch,) = next(PairStream(config, pool.manifest, pool.run).batches(0, 6))
    for image, (_, key) in zip(batch.images, batch.keys, strict=True):
        whole = torch.tensor(fit_square(decode(photo(int(key))), 32))
        assert torch.equal(image, whole) == stored
        assert (image.int() - whole.int()).abs().float().max() < 5, "the same picture"
