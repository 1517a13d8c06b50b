"""A damaged shard is named with its reason, and the rest of the data is captioned, whatever the damage."""

from collections.abc import Callable

import pytest

from fedscale import files
from fedscale.errors import UserError
from fedscale.server.caption import run
from fedscale.session import Session
from tests.server.caption.support import Captioned

BLOCK = 512
HEADER = 2 * 2 * BLOCK  # of the second sample's image: each member has a header and less than a block of data

DAMAGES: dict[str, tuple[Callable[[bytes], bytes | None], str]] = {
    "cut at sample": (lambda b: b[:HEADER], "cut after 00000005.json"),
    "cut at member": (lambda b: b[: HEADER + 2 * BLOCK], "cut after 00000006.png"),
    "cut in header": (lambda b: b[: HEADER + 100], "cut inside the header"),
    "cut in data": (lambda b: b[: HEADER + BLOCK + 100], "cut inside 00000006.png"),
    "garbage header": (lambda b: b[:HEADER] + b"\xff" * BLOCK + b[HEADER + BLOCK :], "no tar header"),
    "zeroed header": (lambda b: b[:HEADER] + bytes(BLOCK) + b[HEADER + BLOCK :], "zeroed header"),
    "empty file": (lambda b: b"", "empty file"),
    "no end blocks": (lambda b: b[: 5 * 4 * BLOCK], "end-of-archive blocks are missing"),
    "a flipped byte": (lambda b: b[: HEADER + BLOCK + 60] + b"!" + b[HEADER + BLOCK + 61 :], "sha256"),
    "no file": (lambda b: None, "no such shard"),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_shard_is_named_and_the_others_are_captioned(captioned: Captioned, damage, reason):
    path = captioned.manifest.path(captioned.manifest.shards("pool")[1])
    broken = damage(path.read_bytes())
    path.unlink()
    if broken is not None:
        path.write_bytes(broken)
    session = Session()
    with pytest.raises(UserError, match=r"1 of 3 shards failed \(pool/00001.tar: "):
        captioned.caption(session)
    marker = files.read_json(captioned.folder / "00001.failed.json")
    assert reason in marker["reason"], marker
    assert any("00001.tar: failed" in line and reason in line for line in session.reporter.lines)
    assert not (captioned.folder / "00001.jsonl").exists() and not list(captioned.folder.glob("*.part.jsonl"))
    assert [row.key for number in (0, 2) for row in captioned.rows(number)] == [
        f"{n:08d}" for n in (*range(5), *range(10, 15))
    ]


@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_a_disk_that_is_full_or_read_only_ends_the_worker_with_nothing_half_published(captioned, monkeypatch, trouble):
    import errno
    import os

    number, words = (errno.ENOSPC, "the disk is full") if trouble == "full" else (errno.EROFS, "read-only")
    fsync = os.fsync
    left = [6]

    def failing(descriptor):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(UserError, match=words):
            run(captioned.config(), captioned.run, Session())
    assert not [path for path in captioned.folder.iterdir() if ".tmp." in path.name]
    done = len(list(captioned.folder.glob("*.done.json")))
    assert done < 3 and all(captioned.rows(number) for number in range(done))
    assert captioned.caption()["images"] == 15, "the next run goes on"
