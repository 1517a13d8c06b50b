"""Folders that are either whole or absent: built beside, renamed."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedscale.files import make_folder, raise_unwritable


@contextmanager
def published_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; when the block ends well, it becomes `path` in one rename.

    Where another process has published `path` meanwhile, its folder stands and ours is dropped: check what is there.
    """
    temporary = path.with_name(f".{path.name}.tmp.{socket.gethostname()}.{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        make_folder(temporary, fresh=True)
        yield temporary
        try:
            os.rename(temporary, path)  # replaces an empty folder, never a full one
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    except Exception as error:
        raise_unwritable(path, error)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
