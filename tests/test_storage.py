"""Files in folders and in an object store behave alike; the store is a real S3 server, on this machine."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedscale.errors import UserError
from fedscale.storage import ObjectStorage, Storage, Unreadable, expand, is_remote, open_read, size_of, storage_at


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An empty folder of either kind."""
    if request.param == "local":
        return storage_at(tmp_path / "captions")
    return storage_at(request.getfixturevalue("bucket") + "/run/captions")


def test_what_is_published_is_listed_and_read(storage: Storage) -> None:
    assert storage.listing() == {}
    storage.publish("00000.jsonl", b"rows")
    storage.publish("00000.done.json", b"{}")
    assert storage.listing() == {"00000.jsonl": 4, "00000.done.json": 2}
    assert storage.read("00000.jsonl") == b"rows"


def test_a_file_published_again_is_replaced(storage: Storage) -> None:
    storage.publish("a", b"one")
    assert storage.listing() == {"a": 3}
    storage.publish("a", b"other")
    assert (storage.read("a"), storage.listing()) == (b"other", {"a": 5})


def test_an_absent_file_is_not_found_and_may_be_deleted(storage: Storage) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read("a")
    storage.delete("a")
    storage.publish("a", b"")
    storage.delete("a")
    assert storage.listing() == {}


def test_what_another_process_publishes_and_deletes_is_seen_at_once(storage: Storage) -> None:
    storage.publish("ours", b"1")
    assert set(storage.listing()) == {"ours"}
    code = "import sys; from fedscale.storage import storage_at as at; s = at(sys.argv[1]); {}"
    for does in ("s.publish('theirs', b'22')", "s.delete('ours')"):
        subprocess.run([sys.executable, "-c", code.format(does), storage.url], check=True, timeout=60)
    assert storage.listing() == {"theirs": 2}


def test_a_listing_is_flat(storage: Storage) -> None:
    storage.publish("a", b"1")
    storage_at(f"{storage.url}/deeper").publish("b", b"22")
    assert storage.listing() == {"a": 1}


def test_an_unfinished_file_is_not_listed(tmp_path: Path) -> None:
    (tmp_path / ".00000.jsonl.tmp.host.1").write_text("half")
    (tmp_path / "00000.jsonl").write_text("whole")
    assert storage_at(tmp_path).listing() == {"00000.jsonl": 5}


@pytest.mark.slow
def test_200_000_files_are_listed_in_well_under_two_seconds(tmp_path: Path) -> None:
    for number in range(200_000):
        (tmp_path / f"{number:06d}.done.json").touch()
    start = time.process_time()
    assert len(storage_at(tmp_path).listing()) == 200_000
    assert time.process_time() - start < 2


def test_objects_are_read_in_streams_and_have_a_size(bucket: str) -> None:
    content = bytes(range(256)) * 100_000  # several blocks
    storage_at(bucket).publish("0.tar", content)
    assert size_of(f"{bucket}/0.tar") == len(content)
    with open_read(f"{bucket}/0.tar") as file:
        assert file.read(1000) == content[:1000]
        assert file.read() == content[1000:]


def test_files_are_read_by_path_and_by_url(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(b"tar")
    for url in (str(tmp_path / "0.tar"), f"file://{tmp_path}/0.tar"):
        assert not is_remote(url)
        assert size_of(url) == 3
        with open_read(url) as file:
            assert file.read() == b"tar"


def test_a_missing_object_is_not_found(bucket: str, tmp_path: Path) -> None:
    for url in (f"{bucket}/gone.tar", str(tmp_path / "gone.tar")):
        with pytest.raises(FileNotFoundError):
            open_read(url)
        with pytest.raises(FileNotFoundError):
            size_of(url)


def test_a_missing_bucket_is_one_line(bucket: str) -> None:
    for use in (lambda s: s.listing(), lambda s: s.publish("a", b"")):
        with pytest.raises(UserError, match=r"s3://no-such-bucket-here/x: no bucket no-such-bucket-here"):
            use(ObjectStorage("s3://no-such-bucket-here/x"))


def test_missing_credentials_are_one_line(bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(UserError, match=r"access refused.*credentials") as caught:
        ObjectStorage(f"{bucket}/x").publish("a", b"")
    assert "\n" not in str(caught.value)


def test_a_server_that_is_not_there_is_one_line(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(Unreadable, match="cannot be reached") as caught:
        storage_at(f"{bucket}/x").read("a")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("url", "extra"), [("s3://bucket/x", "s3"), ("gs://bucket/x", "gcs")])
def test_a_missing_library_names_the_extra(url: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.registry import _registry

    monkeypatch.delitem(_registry, url.partition(":")[0], raising=False)  # what an earlier test has loaded
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=rf"pip install 'mllm-fedscale\[{extra}\]'"):
        storage_at(url)


def test_an_unknown_protocol_is_one_line() -> None:
    with pytest.raises(UserError, match="nowhere"):
        storage_at("nowhere://bucket/x")


def test_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    with open_read("pipe:printf abc | cat") as file:
        assert file.read() == b"abc"
    with pytest.raises(UserError, match="not known"):
        size_of("pipe:cat x")
    with pytest.raises(UserError, match="cannot hold files"):
        storage_at("pipe:cat x")


@pytest.mark.parametrize("command", ["printf abc; echo why >&2; exit 3", "(printf abc; echo why >&2; exit 3) | cat"])
def test_a_pipe_that_fails_after_its_output_is_an_error(command: str) -> None:
    with open_read(f"pipe:{command}") as file:
        assert file.read(3) == b"abc"
        with pytest.raises(Unreadable, match=r"status 3 \(why\)") as caught:
            file.read()
    assert command in str(caught.value)


def test_a_pipe_left_early_is_ended() -> None:
    with open_read("pipe:yes") as file:
        file.read(10)
        process = file.raw._process
    assert process.poll() is not None


def test_patterns_are_expanded_in_order(tmp_path: Path) -> None:
    for name in ("00002.tar", "00000.tar", "00001.tar", "notes.txt"):
        (tmp_path / name).touch()
    three = [str(tmp_path / f"0000{i}.tar") for i in range(3)]
    assert expand(str(tmp_path)) == three
    assert expand(f"{tmp_path}/*.tar") == three
    assert expand(f"{tmp_path}/{{00000..00002}}.tar") == three
    assert expand(f"{tmp_path}/00001.tar") == three[1:2]
    assert expand("pipe:cat /d/{0..1}.tar") == ["pipe:cat /d/0.tar", "pipe:cat /d/1.tar"]


def test_patterns_are_expanded_in_an_object_store(bucket: str) -> None:
    for name in ("00001.tar", "00000.tar", "00000.parquet"):
        storage_at(f"{bucket}/pool").publish(name, b"")
    both = [f"{bucket}/pool/0000{i}.tar" for i in range(2)]
    assert expand(f"{bucket}/pool") == expand(f"{bucket}/pool/*.tar") == both
    assert expand(f"{bucket}/pool/{{00000..00001}}.tar") == both


@pytest.mark.parametrize(
    ("pattern", "says"), [("{0..3.tar", "unbalanced"), ("gone.tar", "no such"), ("*.rat", "no such")]
)
def test_a_pattern_without_a_match_is_one_line(pattern: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        expand(f"{tmp_path}/{pattern}")


def test_a_folder_without_tars_is_one_line(tmp_path: Path, bucket: str) -> None:
    for place in (str(tmp_path), f"{bucket}/empty"):
        with pytest.raises(UserError, match="no such shards"):
            expand(place)
