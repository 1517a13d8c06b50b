"""The journal of a shard under way: finished rows by the group, so that a killed worker redoes one group at most.

`NNNNN.part.jsonl`, append-only: a header, a line for each time that work began, rows, and a line where a group of them
is whole. What follows the last such line (a torn line, half a group) is dropped: the next worker then forms the same
groups as an undisturbed one, and the same batches give the same texts, bit for bit.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from fedscale import files
from fedscale.errors import UserError
from fedscale.lock import is_at, take
from fedscale.server.caption.rows import Row, from_json

BEGUN = '{"begun": true}\n'
WHOLE = '{"whole": true}\n'
FORGOTTEN = "forgotten"


class Journal:
    """One shard's journal, locked while it is open. `rows` are those of whole groups, by key.

    `begun` counts the times that work began here without a row or an orderly stop since: after a crash it grows.
    """

    def __init__(self, path: Path, made_by: dict[str, Any]) -> None:
        self._path, self._header = path, json.dumps({"made_by": made_by}, sort_keys=True)
        self._file: IO[str] | None = None
        self.rows: dict[str, Row] = {}
        self.begun = 0

    def __enter__(self) -> Journal:
        """Raises BlockingIOError while another live process of any machine that shares the file system has it."""
        try:
            files.make_folder(self._path.parent)
            self._file = open(self._path, "a+", encoding="utf-8")  # closed in __exit__
            self._lock(self._file)
            self._load(self._file)
        except BlockingIOError:
            self._close()
            raise
        except OSError as error:
            self._close()
            raise files.unwritable(self._path, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def begin(self) -> None:
        """Note that work begins."""
        self._append(BEGUN)
        self.begun += 1

    def add(self, rows: Sequence[Row]) -> None:
        """Append a group of rows, flushed to the disk."""
        self._append("".join(row.line() for row in rows) + WHOLE)
        self.rows |= {row.key: row for row in rows}
        self.begun = 0

    def stop(self) -> None:
        """Note an orderly stop: what was begun was not lost to a crash."""
        self._append(WHOLE)
        self.begun = 0

    def forget(self, keys: Sequence[str]) -> None:
        """Take rows back: they are to be made again."""
        self._append(json.dumps({FORGOTTEN: list(keys)}) + "\n")
        for key in keys:
            self.rows.pop(key, None)

    def remove(self) -> None:
        """The shard is published; the journal goes."""
        self._path.unlink(missing_ok=True)

    @property
    def _open(self) -> IO[str]:
        assert self._file is not None, "used outside its `with`"
        return self._file

    def _append(self, text: str) -> None:
        try:
            self._open.write(text)
            self._open.flush()
            os.fsync(self._open.fileno())
        except OSError as error:
            raise files.unwritable(self._path, error) from error

    def _load(self, file: IO[str]) -> None:
        file.seek(0)
        text = file.read()
        lines = text[: text.rfind("\n") + 1].splitlines(keepends=True)  # ASCII throughout
        if not lines or lines[0].rstrip() != self._header:  # new, another config's, or damaged
            self._restart(file)
            return
        group: list[Row] = []
        end = at = len(lines[0])
        for line in lines[1:]:
            at += len(line)
            if line == BEGUN:
                self.begun += 1
            elif line == WHOLE:
                self.begun = 0
                self.rows |= {row.key: row for row in group}
            elif FORGOTTEN in (entry := _entry(line, self._path)):
                self.rows = {key: row for key, row in self.rows.items() if key not in entry[FORGOTTEN]}
            else:
                group.append(from_json(entry, str(self._path)))
                continue
            group, end = [], at
        if end < len(text):
            file.truncate(end)

    def _restart(self, file: IO[str]) -> None:
        # In place, because the lock belongs to this very file.
        file.truncate(0)
        file.write(f"{self._header}\n")
        file.flush()
        self.rows, self.begun = {}, 0

    def _lock(self, file: IO[str]) -> None:
        take(file.fileno())  # without locks two workers would do the same work, and publish the same
        if not is_at(self._path, file.fileno()):
            raise BlockingIOError(f"{self._path}: published and removed while it was being opened")

    def _close(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # what a full disk did not take; whole groups are on it since they were added
                self._file.close()
            self._file = None


def _entry(line: str, path: Path) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        raise UserError(f"{path}: damaged; delete it and run `fedscale caption` again") from None
