"""Files read from front to back, wherever they lie: on a disk, in an object store (fsspec), or written by a command."""

from __future__ import annotations

import glob
import io
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from fedscale.errors import UserError

BLOCK = 2**23  # bytes of one ranged GET
PIPE = "pipe:"
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}  # protocol → extra of the distribution
REFUSALS = re.compile(r"Credential|AccessDenied|Forbidden|ExpiredToken|InvalidToken|InvalidAccessKeyId")


class Unreadable(UserError):
    """One file or object that cannot be read to its end; others may well be readable."""


def is_remote(url: str) -> bool:
    """Whether `url` is no local path: an object store's URL or a pipe."""
    return url.startswith(PIPE) or ("://" in url and not url.startswith("file://"))


def open_read(url: str) -> BinaryIO:
    """The bytes of a file, an object or a command's output, as a stream.

    Raises FileNotFoundError; UserError for a store that refuses us; Unreadable, also later from `read`, for a command
    that fails (however much it has written by then) or an object that cannot be read on.
    """
    if url.startswith(PIPE):
        return io.BufferedReader(_Command(url), BLOCK)
    if not is_remote(url):
        try:
            return open(local_path(url), "rb", buffering=2**20)
        except FileNotFoundError:
            raise
        except OSError as error:  # a folder, a loop of links, no permission, a stale handle
            raise Unreadable(f"{url}: cannot be read ({(error.strerror or str(error)).lower()})") from None
    with translated(url):
        fs, path = filesystem(url)
        return io.BufferedReader(_Object(fs.open(path, "rb", block_size=BLOCK, cache_type="readahead"), url), BLOCK)


def size_of(url: str) -> int:
    """Bytes of a file or an object. Raises FileNotFoundError, and UserError for a pipe, whose size nobody knows."""
    if url.startswith(PIPE):
        raise UserError(f"{url}: the size of a command's output is not known before it is read")
    if not is_remote(url):
        return os.stat(local_path(url)).st_size
    with translated(url):
        fs, path = filesystem(url)
        fs.invalidate_cache()
        return int(fs.size(path))


def expand(pattern: str) -> list[str]:
    """The URLs that a pattern names: braces `{00000..00012}`, globs `*`, or a folder for all its *.tar, sorted.

    Raises UserError where nothing matches.
    """
    from braceexpand import braceexpand

    try:
        words = list(braceexpand(pattern))
    except ValueError as error:
        raise UserError(f"{pattern}: unbalanced braces ({error}); expected e.g. {{00000..00012}}.tar") from None
    found = [url for word in words for url in _matches(word)]
    if not found:
        raise UserError(f"{pattern}: no such shards; expected a tar, a folder of tars, or a pattern with * or {{A..B}}")
    return found


class _Object(io.RawIOBase):
    """An open object whose errors name it."""

    def __init__(self, file: Any, url: str) -> None:
        self._file, self._url = file, url

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with translated(self._url):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


class _Command(io.RawIOBase):
    """What a shell command writes; its end is good only if the command says so too."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 (closed in `close`); a full pipe would block
        # pipefail: a failing `aws s3 cp … - | zstd -d` is a failure, whichever half it was.
        shell = ["bash", "-o", "pipefail", "-c", url.removeprefix(PIPE)]
        self._process = subprocess.Popen(
            shell, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._complaints
        )

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        assert self._process.stdout is not None
        data = self._process.stdout.read(len(buffer))
        if not data and (status := self._process.wait()):
            self._complaints.seek(0)
            said = " ".join(self._complaints.read().decode(errors="replace").split())[-200:]
            raise Unreadable(f"{self._url}: the command failed with status {status} ({said or 'it said nothing'})")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process.kill()  # does nothing to one that has ended
            self._process.wait()
            self._complaints.close()
        super().close()


def _matches(word: str) -> Iterator[str]:
    if word.startswith(PIPE):
        yield word
    elif not is_remote(word):
        path = local_path(word)
        if path.is_dir():
            if not (tars := sorted(map(str, path.glob("*.tar")))) and any(path.rglob("*.tar")):
                raise UserError(f"{word}: has no *.tar but in folders below; name '{word.rstrip('/')}/**/*.tar'")
            yield from tars
        elif glob.has_magic(word):
            yield from sorted(glob.glob(str(path), recursive=True))
        elif path.exists():
            yield str(path)
        else:
            raise UserError(f"{word}: no such file or folder")
    elif glob.has_magic(word) or not word.endswith(".tar"):
        with translated(word):
            fs, inside = filesystem(word)
            fs.invalidate_cache()
            if not glob.has_magic(word):
                inside = f"{inside.rstrip('/')}/*.tar"
            yield from sorted(fs.unstrip_protocol(name) for name in fs.glob(inside))
    else:
        yield word  # whether it is there shows when it is read; asking for each of 100,000 takes minutes


def local_path(url: str) -> Path:
    """The path of a URL that is not remote."""
    return Path(url.removeprefix("file://"))


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, which caches no listings, and the path inside it."""
    from fsspec.core import url_to_fs  # type: ignore[import-untyped]

    return url_to_fs(url, use_listings_cache=False)


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Turn what a store's library raises into one line; FileNotFoundError and our own errors pass.

    Everything is caught, since a library's errors need not be OSErrors (botocore's are not) and none of our code runs
    inside but calls of fsspec.
    """
    try:
        yield
    except (UserError, FileNotFoundError):
        raise
    except (ImportError, ValueError) as error:
        protocol = url.partition("://")[0]
        if isinstance(error, ImportError) and protocol in EXTRAS:
            remedy = f"pip install 'mllm-fedscale[{EXTRAS[protocol]}]'"
            raise UserError(f"{url}: the library for {protocol}:// is not installed; {remedy}") from None
        raise UserError(f"{url}: {_line(error)}; expected e.g. s3://bucket/folder") from None
    except Exception as error:
        named = f"{type(error).__name__} {_line(error)}"
        if isinstance(error, PermissionError) or REFUSALS.search(named):
            raise UserError(f"{url}: access refused ({_line(error)}); give credentials that may use it") from None
        raise Unreadable(f"{url}: cannot be reached or read on ({_line(error)}); try again later") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
