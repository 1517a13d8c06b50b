"""Where clients' own vectors live between rounds: copy-on-write rows of memory-mapped slab files, and a table of them.

Every rank of every launch appends to a slab of its own, `<launch>-<rank>.rows`: rows of equal size, no header. A table,
the same on all ranks, says which row of which slab is a client's newest. A row that it or a kept checkpoint's table
refers to is never overwritten, so whatever a killed run leaves behind, its checkpoint's rows are as they were.
"""

from __future__ import annotations

import base64
import ctypes
import os
import shutil
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedscale import files
from fedscale.errors import UserError

CHUNK = 64 << 20  # bytes by which a slab grows at most; it doubles up to there, so that small runs stay small


def next_launch(folder: Path) -> int:
    """A launch number that no slab in the folder bears; one rank asks, and tells the others before any opens."""
    return 1 + max((int(path.name.split("-")[0]) for path in folder.glob("*-*.rows")), default=0)


class ClientStates:
    """Rows of `row_size` elements, one for each client and role, that survive rounds, crashes and other rank counts.

    A round: `read` and `write`; exchange `pending()` among the ranks; `commit` all ranks' entries on each of them, with
    no read in between; or `discard`. A checkpoint: `flush` on every rank, a barrier, `checkpoint` on every rank, rank 0
    saves what it returned, `kept` on every rank, `collect_garbage` on rank 0. On resume `kept`, `collect_garbage`.

    All ranks see one folder, which one launch at a time uses. On one host any local file system will do. Among hosts
    it is coherent (Lustre, GPFS), or close-to-open (NFS) with `flush` before the exchange: after a `commit` slabs are
    opened anew. A table takes 8 bytes an entry: int32 (slab, slot) [2, roles, clients], −1 where there is no row.
    """

    def __init__(
        self,
        folder: Path,
        roles: Sequence[str],
        num_clients: int,
        row_size: int,
        dtype: torch.dtype,
        launch: int,
        rank: int,
        table: dict[str, Any] | None = None,
    ) -> None:
        """Open at a checkpoint's table, or empty; `launch` is one never seen before, see `next_launch`.

        Raises UserError when the table is torn or of other rows, a slab is not there whole, or the own one is there.
        """
        assert 0 < launch < 1 << 15 and 0 <= rank < 1 << 16, (launch, rank)
        self.folder, self.roles, self.row_size, self.dtype = folder, list(roles), row_size, dtype
        self._shape = {"roles": self.roles, "clients": num_clients, "row_size": row_size, "dtype": str(dtype)}
        self._row_bytes = row_size * dtype.itemsize
        self._own = launch << 16 | rank  # slabs by number
        self._capacity = 0  # rows that the own slab has room for
        self._free: list[int] = []  # those of them that nothing refers to
        self._pending: dict[tuple[int, str], int] = {}
        self._kept = [] if table is None else [self._decoded(table)]
        self._live = self._kept[0].copy() if self._kept else np.full((2, len(self.roles), num_clients), -1, np.int32)
        self._maps: dict[int, np.ndarray] = {}
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="client-rows")
        self._ahead: dict[tuple[int, str], Future[Tensor]] = {}
        for slab in np.unique(self._live[0][self._live[0] >= 0]).tolist():
            self._map(slab, int(self._live[1][self._live[0] == slab].max()))
        path = self._path(self._own)
        try:
            files.make_folder(folder)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            raise UserError(f"{path}: another launch is writing this run folder; stop it, and start again") from None
        except OSError as error:
            raise files.unwritable(path, error) from error

    def read(self, client: int, role: str, out: Tensor) -> bool:
        """Fill `out` [row_size], on any device, with the client's committed row; zeros, and False, before its first."""
        assert out.shape == (self.row_size,), out.shape
        ahead = self._ahead.pop((client, role), None)
        row = ahead.result() if ahead else self._row(client, role)
        out.zero_() if row is None else out.copy_(row)
        return row is not None

    def write(self, client: int, role: str, vector: Tensor) -> None:
        """Keep `vector` [row_size] as the client's next row, for `commit`; UserError, and no row, on a full disk."""
        assert vector.shape == (self.row_size,) and role in self.roles, (vector.shape, role)
        data = vector.detach().to("cpu", self.dtype).contiguous().view(torch.uint8).numpy().data
        slot = self._pending.pop((client, role), None)
        try:
            slot = self._free_slot() if slot is None else slot
            # Written through the file and not the map: what goes wrong is then an error number and not a SIGBUS.
            done = 0
            while done < len(data):
                done += os.pwrite(self._file, data[done:], slot * self._row_bytes + done)
        except OSError as error:
            raise files.unwritable(self._path(self._own), error) from error
        self._pending[client, role] = slot

    def prefetch(self, clients: Iterable[int]) -> None:
        """Read these clients' rows in the background, and forget others; once the group before has read its own."""
        wanted = [(client, role) for client in clients for role in self.roles]
        for key in self._ahead.keys() - set(wanted):
            self._ahead.pop(key).cancel()
        for key in wanted:
            if key not in self._ahead and (row := self._row(*key)) is not None:
                self._ahead[key] = self._reader.submit(row.clone)

    def pending(self) -> list[tuple[int, str, int, int]]:
        """(client, role, slab, slot) of what this rank wrote since the last commit, for every rank's `commit`."""
        return [(client, role, self._own, slot) for (client, role), slot in sorted(self._pending.items())]

    def commit(self, entries: Sequence[Sequence[Any]]) -> None:
        """Make all ranks' entries the newest rows; a row that was written but is not among them is discarded."""
        assert len({(client, role) for client, role, _, _ in entries}) == len(entries), "one row a client and role"
        for client, role, slab, slot in entries:
            self._live[:, self.roles.index(role), client] = slab, slot
            if ahead := self._ahead.pop((client, role), None):
                ahead.cancel()
        self._maps.clear()
        self.discard()

    def discard(self) -> None:
        """Drop what was written since the last commit."""
        self._pending.clear()
        self._find_free()

    def flush(self) -> None:
        """Bring the own slab to the disk. Raises UserError when the disk cannot take it."""
        try:
            os.fsync(self._file)
        except OSError as error:
            raise files.unwritable(self._path(self._own), error) from error

    def checkpoint(self) -> dict[str, Any]:
        """The table to save with a checkpoint, JSON-able and equal on all ranks; kept until `kept` says otherwise."""
        assert not self._pending, "commit or discard first"
        self._kept.append(self._live.copy())
        packed = zlib.compress(self._live.astype("<i4").tobytes())
        return self._shape | {"places": base64.b64encode(packed).decode()}

    def kept(self, tables: Iterable[dict[str, Any]]) -> None:
        """Free the slots that only other tables than these refer to; once the newest of them is safely saved."""
        self._kept = [self._decoded(table) for table in tables]
        self._find_free()

    def collect_garbage(self) -> None:
        """Rank 0, after `kept`: free the disk of what older launches wrote and no table refers to any more."""
        for path in self.folder.glob("*-*.rows"):
            launch, rank = map(int, path.stem.split("-"))
            if launch == self._own >> 16:
                continue  # other ranks' rows may be on their way into the table
            slab = launch << 16 | rank
            used = np.unique(np.hstack([t[1][t[0] == slab] for t in (self._live, *self._kept)])).tolist()
            if used:
                _give_back(path, [-1, *used, path.stat().st_size // self._row_bytes], self._row_bytes)
            else:
                path.unlink(missing_ok=True)

    def expected_bytes(self, cohort: int, every: int = 1) -> int:
        """Bytes of disk that all ranks' rows take at most, to be printed before the run.

        Beside the newest rows: what two kept checkpoints, `every` rounds apart, saw instead, and the round under way.
        Raises UserError when the disk has less room than one cohort's rows need.
        """
        num_clients, client_bytes = self._live.shape[2], len(self.roles) * self._row_bytes
        free, needed = shutil.disk_usage(self.folder).free, cohort * client_bytes
        if free < needed:
            raise UserError(
                f"{self.folder}: the state of {cohort} clients takes {needed / 1e9:.1f} GB, but the disk has "
                f"{free / 1e9:.1f} GB free: free some space, or lower federate.clients_per_round"
            )
        return rows_at_most(num_clients, cohort, every) * client_bytes

    def close(self) -> None:
        """Stop reading ahead and let go of the files; what was not committed is lost."""
        self._reader.shutdown(cancel_futures=True)
        self._maps.clear()
        os.close(self._file)

    def _path(self, slab: int) -> Path:
        return self.folder / f"{slab >> 16}-{slab & 0xFFFF}.rows"

    def _row(self, client: int, role: str) -> Tensor | None:
        slab, slot = self._live[:, self.roles.index(role), client].tolist()
        return None if slab < 0 else torch.from_numpy(self._map(slab, slot)[slot]).view(self.dtype)

    def _map(self, slab: int, slot: int) -> np.ndarray:
        """uint8 [rows, row bytes], a map of the slab that reaches to `slot` at least."""
        if slab not in self._maps or slot >= len(self._maps[slab]):
            path = self._path(slab)
            rows = path.stat().st_size // self._row_bytes if path.exists() else 0
            if slot >= rows:
                raise UserError(
                    f"{path}: missing or too short ({rows} rows, the checkpoint refers to row {slot + 1}); "
                    f"restore it, or delete {self.folder.parent} to federate anew"
                )
            # No longer than the file, beyond which a touch would be a SIGBUS; "r+" as torch wants writable memory.
            try:
                self._maps[slab] = np.memmap(path, np.uint8, "r+", shape=(rows, self._row_bytes))
            except OSError as error:
                raise files.unwritable(path, error) from error
        return self._maps[slab]

    def _free_slot(self) -> int:
        if not self._free:
            more = max(1, min(max(self._capacity, 4), CHUNK // self._row_bytes))
            # On the disk and not a hole, so that a full one is found out before anything is written.
            os.posix_fallocate(self._file, self._capacity * self._row_bytes, more * self._row_bytes)
            self._free = list(range(self._capacity, self._capacity + more))[::-1]
            self._capacity += more
        return self._free.pop()

    def _find_free(self) -> None:
        free = np.ones(self._capacity, bool)
        for table in (self._live, *self._kept):
            free[table[1][table[0] == self._own]] = False
        free[list(self._pending.values())] = False
        self._free = np.flatnonzero(free)[::-1].tolist()

    def _decoded(self, table: dict[str, Any]) -> np.ndarray:
        remedy = f"delete that checkpoint to resume at the one before it, or {self.folder.parent} to federate anew"
        try:
            shape = {key: table[key] for key in self._shape}
            flat = np.frombuffer(zlib.decompress(base64.b64decode(table["places"], validate=True)), "<i4")
            if shape == self._shape:
                return flat.reshape(2, len(self.roles), shape["clients"]).astype(np.int32)
        except (ValueError, KeyError, TypeError, zlib.error) as error:
            raise UserError(f"{self.folder}: a checkpoint's table is torn ({error!r}); {remedy}") from None
        raise UserError(f"{self.folder}: the checkpoint has {shape}, the run {self._shape}; {remedy}")


def rows_at_most(num_clients: int, cohort: int, every: int = 1) -> int:
    """Clients' rows on the disk at most: the newest, those that two kept checkpoints saw instead, a round's own."""
    older = min(num_clients, every * cohort) + min(num_clients, (every - 1) * cohort)
    return num_clients + older + cohort


def _give_back(path: Path, used: Sequence[int], row_bytes: int) -> None:
    """Make holes of what lies between the used rows: Linux alone can, and not on every file system; no matter."""
    with suppress(AttributeError, OSError), open(path, "rb+") as file:
        fallocate = ctypes.CDLL(None).fallocate
        fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
        for before, after in pairwise(used):
            if after > before + 1:  # 3: punch a hole and keep the size
                fallocate(file.fileno(), 3, (before + 1) * row_bytes, (after - before - 1) * row_bytes)
