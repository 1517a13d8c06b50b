"""A pool and its captions in an object store: imported where it lies, captioned, published row objects first."""

import dataclasses

import pytest

from fedscale.config.schema import Config
from fedscale.data.pools import import_pool
from fedscale.errors import UserError
from fedscale.progress import SilentReporter
from fedscale.runs import RunFolder
from fedscale.server.caption import ledger, run, sidecar
from fedscale.session import Session
from fedscale.storage import ObjectStorage, storage_at
from tests.server.caption.support import make_pool, sample


@pytest.fixture
def remote(bucket, tmp_path) -> Config:
    """The config of an imported pool of three shards in a bucket, with `caption.dir` beside it."""
    local = make_pool(tmp_path / "local", [[sample(n) for n in range(5 * s, 5 * s + 5)] for s in range(3)])
    for shard in local.shards("pool"):
        storage_at(f"{bucket}/pool").publish(shard.file.rpartition("/")[2], local.path(shard).read_bytes())
    import_pool([f"{bucket}/pool/{{00000..00002}}.tar"], tmp_path / "imported", SilentReporter())
    config = Config(name="t")
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, pool=str(tmp_path / "imported")),
        caption=dataclasses.replace(config.caption, engine="template", dir=f"{bucket}/captions"),
    )


def test_a_remote_pool_is_captioned_into_the_store_and_read_back(remote, bucket, tmp_path):
    where, folder = storage_at(f"{bucket}/captions"), RunFolder(tmp_path / "run")
    summary = run(remote, folder, Session())
    assert summary["ok"] == 15 and summary["class_naming_accuracy"] is None, "an imported pool has no classes"
    names = sorted(name for name in where.listing() if not name.startswith("settings"))
    assert names == sorted(f"0000{n}.{end}" for n in range(3) for end in ("jsonl", "done.json"))
    captions = ledger.captioned(remote, _pool(remote), folder)
    rows = sidecar.read(captions.where, captions.entries[1].shard, captions.entries[1].marker)
    assert [row.key for row in rows] == [f"{n:08d}" for n in range(5, 10)]
    assert not list((tmp_path / "run").rglob("*.part.jsonl"))


def test_the_marker_goes_last_and_a_killed_worker_publishes_nothing_that_counts(remote, bucket, tmp_path, monkeypatch):
    put: list[str] = []
    publish = ObjectStorage.publish

    def dying(self, name, data):
        if name == "00001.done.json":
            raise KeyboardInterrupt
        put.append(name)
        publish(self, name, data)

    folder = RunFolder(tmp_path / "run")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ObjectStorage, "publish", dying)
        run(remote, folder, Session())
    assert put.index("00000.jsonl") < put.index("00000.done.json") and put[-1] == "00001.jsonl"
    with pytest.raises(UserError, match=r"00001.jsonl: not captioned"):
        ledger.captioned(remote, _pool(remote), folder)
    before = storage_at(f"{bucket}/captions").read("00000.done.json")
    assert run(remote, folder, Session())["ok"] == 15
    assert storage_at(f"{bucket}/captions").read("00000.done.json") == before, "what was finished is not touched"


def test_leases_need_a_shared_folder(remote, tmp_path):
    config = dataclasses.replace(remote, caption=dataclasses.replace(remote.caption, leases=True))
    with pytest.raises(UserError, match=r"caption.leases=true needs a folder.*s3://"):
        run(config, RunFolder(tmp_path / "run"), Session())


def _pool(config: Config):
    from fedscale.data.open_pool import open_pool

    return open_pool(config.data, SilentReporter())
