"""Files are whole or absent."""

import errno
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from fedscale import files
from fedscale.errors import Stopped, UserError


def test_a_failure_while_writing_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"old": 1})
    with pytest.raises(RuntimeError), files.published(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert files.read_json(path) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    full = pytest.raises(UserError, match=r"a\.bin: cannot be written \(the disk is full")
    with full, files.published(tmp_path / "a.bin") as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_seen_through_what_libraries_make_of_it() -> None:
    from safetensors import SafetensorError

    wrapped = RuntimeError("checkpoint failed")
    wrapped.__cause__ = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    line = files.disk_trouble(wrapped)
    assert line is not None and "no space left on device" in line
    assert files.disk_trouble(RuntimeError("[Errno 30] Read-only file system")) is not None
    assert files.disk_trouble(OSError(errno.ENOSPC, "full")) is not None
    assert files.disk_trouble(RuntimeError("step 28 failed")) is None
    assert files.disk_trouble(FileNotFoundError(errno.ENOENT, "gone")) is None


def test_a_full_disk_is_named_by_the_file_whatever_a_library_says(tmp_path: Path) -> None:
    from safetensors import SafetensorError

    said = "Error while serializing: I/O error: No space left on device (os error 28)"
    for error in (SafetensorError(said), OSError("5000 requested and 123 written")):
        full = pytest.raises(UserError, match=r"a\.bin: cannot be written \(the disk is full")
        with full, files.published(tmp_path / "a.bin"):
            raise error


def test_another_error_of_the_disk_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Input/output error") as raised, files.published(tmp_path / "a.bin"):
        raise OSError(errno.EIO, "Input/output error")
    assert files.disk_trouble(raised.value) is None


def test_a_stop_and_a_users_mistake_pass_through_a_file_that_is_being_written(tmp_path: Path) -> None:
    for error in (Stopped("stopped"), UserError("federate.lr=0")):
        with pytest.raises(type(error)) as raised, files.published(tmp_path / "a.bin"):
            try:
                raise OSError(errno.ENOSPC, "full")
            except OSError:
                raise error from None
        assert raised.value is error


def test_a_folder_that_is_a_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        files.write_text(tmp_path / "runs" / "demo" / "config.yaml", "x")


@pytest.mark.parametrize("made", [files.make_folder, partial(files.make_folder, fresh=True)])
def test_a_file_system_that_takes_no_folders_is_one_clear_line(made: Callable[[Path], None]) -> None:
    for path in (Path("/proc/x"), Path("/proc/x/runs/demo")):
        with pytest.raises(UserError, match=r"^/proc: no folder can be made in it; choose another place$"):
            made(path)


def test_a_folder_that_is_there_is_made_again_unless_it_has_to_be_fresh(tmp_path: Path) -> None:
    files.make_folder(tmp_path / "a" / "b")
    files.make_folder(tmp_path / "a" / "b")
    with pytest.raises(FileExistsError):
        files.make_folder(tmp_path / "a" / "b", fresh=True)


def test_a_torn_last_line_is_dropped_and_a_torn_middle_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    files.append_jsonl(path, {"round": 1})
    with open(path, "a") as file:
        file.write('{"round": 2, "al')
    assert files.read_jsonl(path) == [{"round": 1}]
    path.write_text('{"round"\n{"round": 2}\n')
    with pytest.raises(UserError, match="line 1 is not valid JSON"):
        files.read_jsonl(path)


def test_a_text_with_line_separators_stays_one_row(tmp_path: Path) -> None:
    rows = [{"text": "a\u2028b\u0085c\nd"}, {"text": "e"}]
    files.write_jsonl(tmp_path / "rows.jsonl", rows)
    assert files.read_jsonl(tmp_path / "rows.jsonl") == rows
    files.write_jsonl(tmp_path / "none.jsonl", [])
    assert files.read_jsonl(tmp_path / "none.jsonl") == []


def test_the_fingerprint_ignores_the_order_of_keys_and_sees_values() -> None:
    assert files.fingerprint({"a": 1, "b": [2]}) == files.fingerprint({"b": [2], "a": 1})
    assert files.fingerprint({"a": 1}) != files.fingerprint({"a": 2})
