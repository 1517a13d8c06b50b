"""Files that are either whole or absent: written beside, fsynced, renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from fedscale.errors import Stopped, UserError


@contextmanager
def published(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well, it becomes `path` in one rename.

    An exception inside the block leaves no file behind. A full disk or a read-only folder is a `UserError`.
    """
    temporary = path.with_name(f".{path.name}.tmp.{socket.gethostname()}.{os.getpid()}")
    try:
        make_folder(path.parent)
        yield temporary
        settle(temporary)
        os.replace(temporary, path)
    except Exception as error:
        raise_unwritable(path, error)
    finally:
        with suppress(OSError):  # never in the way of the error that is already under way
            temporary.unlink()


def make_folder(path: Path, fresh: bool = False) -> None:
    """Make a folder, and those above it; `fresh`: it must not be there yet. Raises OSError as `Path.mkdir` does.

    A file system that takes no folders, as /proc, says ENOENT, which elsewhere is a file that we miss: a UserError.
    """
    try:
        path.mkdir(parents=True, exist_ok=not fresh)
    except FileNotFoundError as error:
        raise UserError(f"{Path(error.filename).parent}: no folder can be made in it; choose another place") from error


def settle(path: Path) -> None:
    """Bring a written file to the disk, readable for whom the user's umask says (safetensors writes 0600)."""
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(path, 0o666 & ~umask)
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def unwritable(path: Path, error: Exception) -> Exception:
    """The `UserError` for a path that cannot be written, or the error itself when it is something else.

    A full or read-only disk is seen through what libraries make of it.
    """
    remedies = {
        errno.ENOSPC: "the disk is full: free some space",
        errno.EDQUOT: "the disk quota is used up: free some space",
        errno.EROFS: "the file system is read-only: choose another folder",
        errno.EACCES: "permission denied: choose another folder",
        errno.EPERM: "permission denied: choose another folder",
        errno.ENOTDIR: "a part of the path is a file, not a folder: choose another folder",
        errno.EEXIST: "a part of the path is a file, not a folder: choose another folder",
    }
    if isinstance(error, UserError | Stopped):
        return error
    number = _trouble(error) or getattr(error, "errno", None)
    if number not in remedies:
        return error
    return UserError(f"{path}: cannot be written ({remedies[number]})")


def raise_unwritable(path: Path, error: Exception) -> NoReturn:
    """Raise what `unwritable` makes of the error that is being handled."""
    found = unwritable(path, error)
    if found is error:
        raise
    raise found from error


def disk_trouble(error: BaseException) -> str | None:
    """The line for an error that is a full or read-only disk at heart, however a library wrapped it; else None."""
    number = _trouble(error)
    if number is None:
        return None
    return f"a file cannot be written ({os.strerror(number).lower()}); the same command resumes afterwards"


def _trouble(error: BaseException) -> int | None:
    """The number of a full or read-only disk that is at the heart of the error, or None.

    safetensors and torch's checkpoints raise errors of their own, which carry the number in their text alone; numpy's
    carries none.
    """
    found: BaseException | None = error
    seen: set[int] = set()
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        numbers = {
            getattr(found, "errno", None),
            *(int(n) for n in re.findall(r"(?:os error |\[Errno )(\d+)", str(found))),
        }
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            if number in numbers:
                return number
        if isinstance(found, OSError) and re.fullmatch(r"\d+ requested and \d+ written", str(found)):
            return errno.ENOSPC
        found = found.__cause__ or found.__context__
    return None


def reserve(path: Path) -> None:
    """Give a file the blocks of its whole length, before it is written through a map.

    Where the disk is full that is an OSError, and not the end of the process by SIGBUS.
    """
    with open(path, "rb+") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, os.fstat(file.fileno()).st_size))


def write_text(path: Path, text: str) -> None:
    """Publish a text file atomically."""
    with published(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Publish a JSON file atomically, with sorted keys, so that equal values are equal bytes."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; a missing or malformed one is a `UserError` that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); delete it and run the step that writes it again") from None


def append_jsonl(path: Path, row: dict[str, Any]) -> None:
    """Append one row, flushed to the disk."""
    try:
        make_folder(path.parent)
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise unwritable(path, error) from error


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """Publish all rows of a JSON-lines file atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All whole rows of a JSON-lines file, an absent one giving none; a torn last line (a crash) is dropped."""
    if not path.exists():
        return []
    # Not splitlines(), which would also break a row at the line separators that a text may hold.
    lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    if lines == [""]:
        return []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise UserError(
                    f"{path}: line {number} is not valid JSON; delete the file and run the stage again"
                ) from None
    return rows


def fingerprint(value: Any) -> str:
    """A short hash (16 hex digits) of a JSON-able value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
