"""One thread a test process: several workers on few cores, and the same arithmetic everywhere. And an S3 server."""

import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fedscale.distributed.compile_lock import release_dead_locks

COMPILED = Path(sys.prefix) / "torch_extensions"  # with the environment whose headers it was compiled from


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--data", metavar="DIR", help="CIFAR-10 as parquet, for the whole commands (-m full)")


def pytest_configure(config: pytest.Config) -> None:
    """DeepSpeed's compiled operation, a minute's work, is kept between runs; a lock that a killed one left is not.

    All child processes find the same ninja: another one takes what it compiled for stale and compiles it again.
    """
    if not hasattr(config, "workerinput"):
        release_dead_locks(COMPILED)
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(COMPILED))
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What this machine chose before is neither read nor changed."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("XDG_CACHE_HOME")
    if before is not None:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The endpoint of an S3 server in this process; each test has a bucket of its own there."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a new, empty bucket; child processes reach it too, through the environment."""
    import boto3
    import s3fs

    keys = {"AWS_ACCESS_KEY_ID": "user", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**keys, "AWS_ENDPOINT_URL": s3_server}.items():
        monkeypatch.setenv(name, value)
    name = f"pool-{uuid.uuid4().hex[:8]}"
    boto3.client("s3").create_bucket(Bucket=name)
    s3fs.S3FileSystem.clear_instance_cache()  # file systems keep the endpoint and keys of the test before
    yield f"s3://{name}"
    s3fs.S3FileSystem.clear_instance_cache()
