"""A disk that is full or read-only, for real, before every stage and in its middle: one line, and nothing half-written;
once it is mended the same command ends with the bytes of a run that nothing disturbed."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedscale.checkpoints import newest
from fedscale.data import store
from fedscale.data.manifest import Manifest
from fedscale.errors import UserError
from fedscale.progress import SilentReporter
from tests.faults.disk import Disk, mounted
from tests.faults.tiny import STAGES, Tiny
from tests.ranks import ranks

TROUBLES: dict[str, tuple[Callable[[Disk], None], str]] = {
    "full": (Disk.fill, "the disk is full: free some space"),
    "read-only": (Disk.forbid_writing, "the file system is read-only: choose another folder"),
}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    try:
        with mounted(tmp_path / "disk") as disk:
            yield disk
    except PermissionError as error:
        pytest.skip(f"a disk of the test's own cannot be mounted: {error}")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("when", ["before", "amid"])
@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_stage_ends_with_one_line_and_loses_nothing(
    trouble: str,
    when: str,
    stage: str,
    disk: Disk,
    begun: Callable[..., Tiny],
    finished: Tiny,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    strike, remedy = TROUBLES[trouble]
    tiny = begun(stage, disk.place)
    if when == "before":
        strike(disk)
        ended = tiny.command(stage, monkeypatch)
    else:
        ended = tiny.command(stage, monkeypatch, lambda: strike(disk))
    assert ended.code == 2, ended
    line = re.fullmatch(r"error: (\S+): cannot be written \((.+)\)\n", ended.complaint)
    assert line is not None and line[2] == remedy, ended
    assert Path(line[1]).is_relative_to(disk.place)
    assert not (tiny.folder / stage / "done.json").exists()
    if trouble == "full":  # on a read-only one what is under way can only be left under its other name
        assert tiny.unfinished() == []
    disk.mend()
    saved = newest(tiny.folder / stage, {"pretrain": "step", "federate": "round"}.get(stage, "none"))
    assert (saved is not None) == (when == "amid" and stage in ("pretrain", "federate"))
    again = tiny.command(stage, monkeypatch)
    assert again.code == 0, again
    assert any("resuming after" in said for said in again.lines) == (saved is not None)
    assert tiny.results(stage) == finished.results(stage)


RANK = """
import os, sys
from pathlib import Path
from tests.faults.disk import Disk
from tests.faults.tiny import Tiny, stood_in

shards, place, scratch, stage, strike = sys.argv[1:]
fault = (lambda: Disk(Path(place)).fill()) if strike == "fill" else (lambda: None)
with stood_in() as patch:
    patch.setattr(os, "_exit", sys.exit)  # what is said is read when the command has ended
    done = Tiny(Path(shards), Path(place), Path(scratch)).command(stage, patch, fault)
print(done.code, done.complaint.strip(), *done.lines, "", sep="|")
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "federate", "align"])
def test_two_ranks_end_with_the_same_line(
    stage: str, disk: Disk, begun: Callable[..., Tiny], finished: Tiny, tmp_path: Path
) -> None:
    tiny = begun(stage, disk.place)
    (tmp_path / "rank.py").write_text(RANK)
    words = (tmp_path / "rank.py", finished.place.parent / "data", disk.place, tmp_path / "words", stage)
    ended = ranks(2, *words, "fill")
    first, second = ended.stdout.splitlines()
    line = rf"{disk.place}\S+: cannot be written \(the disk is full: free some space\)"
    assert re.match(rf"2\|error: {line}\|", first), ended
    told = rf"2\|error: {line}\|"  # by torch's checkpoint; else as of a rank that ended
    assert re.match(told if stage == "pretrain" else rf"1\|error: {stage}: rank 0 .* with UserError: {line}", second), (
        ended
    )
    assert tiny.unfinished() == [] and not (tiny.folder / stage / "done.json").exists()
    disk.mend()
    again = ranks(2, *words, "spare")
    assert [line[:2] for line in again.stdout.splitlines()] == ["0|", "0|"], again
    assert ("resuming after" in again.stdout) == (stage != "align")


@pytest.mark.parametrize("trouble", TROUBLES)
def test_decoding_images_ends_with_one_line(trouble: str, disk: Disk, finished: Tiny) -> None:
    """Decoded images are written through a map of memory, where a full disk would end the process by a signal."""
    strike, remedy = TROUBLES[trouble]
    shutil.copytree(
        finished.place.parent / "data", disk.place / "data", ignore=shutil.ignore_patterns(".store*", "store*")
    )
    manifest = Manifest.load(disk.place / "data")
    strike(disk)
    with pytest.raises(UserError, match=re.escape(remedy)):
        store.open_store(manifest, "train", 64, SilentReporter(), 0.0)
    disk.mend()
    assert len(store.open_store(manifest, "train", 64, SilentReporter(), 0.0).keys) == 24


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() == 0, reason="root mounts without a namespace of its own")
def test_in_a_namespace_of_its_own(tmp_path: Path) -> None:
    """The tests above, where nobody is root."""
    words = ["unshare", "-rm", sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    words += [f"--basetemp={tmp_path / 'inside'}", __file__]
    if subprocess.run(["unshare", "-rm", "true"]).returncode:
        pytest.skip("neither root nor user namespaces")
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout
