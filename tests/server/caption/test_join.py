"""Joined tars: what a trainer without sidecars reads; and the join that the stages make in memory."""

import json

import pytest

from fedscale.data.manifest import Manifest
from fedscale.data.open_pool import open_pool
from fedscale.data.shards import read_shard
from fedscale.data.verify import verify_shards
from fedscale.errors import UserError
from fedscale.progress import SilentReporter
from fedscale.server.caption import ledger
from fedscale.server.caption.engines import Answer
from fedscale.server.caption.join import join_shards, joined
from fedscale.session import Session
from tests.server.caption.support import Captioned


def join(captioned: Captioned, out, **settings) -> dict:
    config = captioned.config(**settings)
    return join_shards(config, open_pool(config.data, SilentReporter()), captioned.run, out, Session())


def test_webdataset_reads_images_texts_and_conversations(captioned, fake, tmp_path):
    import webdataset

    fake(answers={"00000002": Answer("", "stop", 1)})
    captioned.caption(engine="hf")
    done = join(captioned, tmp_path / "joined", engine="hf")
    assert done == {"shards": 3, "images": 14, "left_out": {"empty": 1}}
    rows = list(webdataset.WebDataset(str(tmp_path / "joined/train/00000.tar"), shardshuffle=False, nodesplitter=None))
    assert [row["__key__"] for row in rows] == ["00000000", "00000001", "00000003", "00000004"]
    original = next(iter(read_shard(captioned.manifest.path(captioned.manifest.shards("pool")[0]))))
    facts = json.loads(rows[0]["json"])
    assert rows[0]["png"] == original.image and rows[0]["txt"] == b"a circle\na circle\na circle"
    assert facts["keyword"] == "circle"
    assert facts["conversations"]["conversation"] == [
        {"from": "human", "value": "<image>\nWhat is the main object in this image?"},
        {"from": "gpt", "value": "a circle"},
    ]


def test_keys_of_foreign_pools_are_made_ones_that_a_shard_may_hold():
    from fedscale.data.shards import KEY
    from fedscale.server.caption.join import _key

    keys = ["000000012", "dir/sub/00001", "dir/sub_00001", "größe", "x" * 200]
    assert _key(keys[0]) == keys[0]
    assert all(KEY.fullmatch(_key(key)) for key in keys) and len({_key(key) for key in keys}) == len(keys)


def test_joined_shards_verify_and_equal_captions_give_equal_bytes(captioned, tmp_path):
    captioned.caption()
    join(captioned, tmp_path / "one")
    join(captioned, tmp_path / "two")
    assert verify_shards(tmp_path / "one", SilentReporter()) == []
    one, two = (Manifest.load(tmp_path / name) for name in ("one", "two"))
    assert one.splits == two.splits and one.fingerprint == two.fingerprint


def test_a_join_writes_into_no_folder_of_others_and_nothing_before_the_captions(captioned, tmp_path):
    with pytest.raises(UserError, match="run `fedscale caption`"):
        join(captioned, tmp_path / "joined")
    captioned.caption()
    (tmp_path / "joined").mkdir()
    (tmp_path / "joined" / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="is taken"):
        join(captioned, tmp_path / "joined")
    assert [path.name for path in (tmp_path / "joined").iterdir()] == ["thesis.tex"]


def test_rows_of_other_images_are_never_joined(captioned):
    captioned.caption()
    config = captioned.config()
    captions = ledger.captioned(config, captioned.manifest, captioned.run)
    first, second = (captioned.manifest.path(entry.shard) for entry in captions.entries[:2])
    first.write_bytes(second.read_bytes())
    with pytest.raises(UserError, match=r"image 00000005 has 00000000's captions"):
        list(joined(captions, captioned.manifest, captions.entries[0]))
