"""Checks of a machine find what is really so, and leave nothing behind."""

import os
import time
from importlib import metadata
from pathlib import Path

import pytest
from torch.utils import cpp_extension

from fedscale.distributed import compile_lock
from fedscale.doctor import clock, deepspeed_ops, devices, extras, folders, shared_memory, speed, threads, versions
from fedscale.doctor.finding import Gravity
from fedscale.doctor.patient import Clocks
from tests.doctor.conftest import Patients


def test_a_folder_that_runs_can_write_is_measured_and_left_as_it_was(patient: Patients, tmp_path: Path) -> None:
    found = folders.run_folder(patient())
    assert found.gravity in (Gravity.FINE, Gravity.NOTE) and "writable" in found.found
    rates = [value for name, value in found.facts.items() if name.endswith("_per_second")]
    assert len(rates) == 3 and all(rate > 0 for rate in rates)
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_below_a_file_is_broken(patient: Patients, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    found = folders.run_folder(patient("out=taken"))
    assert found.gravity == Gravity.BROKEN and "not a folder" in found.found and "out=" in found.remedy


def test_shards_that_are_there_are_read_and_none_is_written(patient: Patients, tmp_path: Path) -> None:
    tar = tmp_path / "built" / "train" / "00000.tar"
    tar.parent.mkdir(parents=True)
    tar.write_bytes(bytes(2**20))
    found = folders.shards_folder(patient("data.dir=built"))
    assert "are read at" in found.found and found.facts["read_bytes_per_second"] > 0
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tar]


def test_reading_stops_after_enough_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "BYTES", speed.PIECE)
    (tmp_path / "first").write_bytes(bytes(speed.PIECE))
    assert speed.reading([tmp_path / "first", tmp_path / "never opened"]) > 0
    with pytest.raises(FileNotFoundError):
        speed.reading([tmp_path / "never opened"])


def test_shared_memory_is_really_taken(patient: Patients, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = shared_memory.shared_memory(patient("pretrain.workers=3"), tmp_path / "none")
    assert missing.gravity == Gravity.NOTE and "pretrain.workers=0 (now 3)" in missing.remedy
    monkeypatch.setattr(shared_memory, "PROBE", 2**62)
    assert shared_memory.shared_memory(patient(), tmp_path).gravity == Gravity.BROKEN


def test_a_quota_of_a_container_is_read(tmp_path: Path, patient: Patients, monkeypatch: pytest.MonkeyPatch) -> None:
    for text, cores in (("150000 100000\n", 1.5), ("max 100000\n", None), ("nonsense", None)):
        (tmp_path / "cpu.max").write_text(text)
        assert threads.quota_of(tmp_path / "cpu.max") == cores
    assert threads.quota_of(tmp_path / "none") is None
    (tmp_path / "cpu.max").write_text("100000 100000")
    monkeypatch.setattr(threads, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(threads, "cores", lambda: 8)
    found = threads.threads(patient("threads=4", "jobs=1"))
    assert found.gravity == Gravity.NOTE and found.remedy == "set threads=1"
    assert "more threads than cores" in threads.threads(patient("threads=9", "jobs=1")).found


def test_the_device_computes(patient: Patients) -> None:
    found = devices.device(patient())
    assert found.gravity < Gravity.MISTAKE and found.facts["free_bytes"] > 0


def test_every_extra_of_the_distribution_is_judged_and_what_a_config_needs_is_grave(patient: Patients) -> None:
    named = metadata.metadata(versions.OURS).get_all("Provides-Extra") or []
    found = {one.check: one for one in extras.extras(patient())}
    assert [*found] == [f"extra {name}" for name in named] and found["extra dev"].gravity == Gravity.FINE
    lacking = [name for name in named if found[f"extra {name}"].gravity == Gravity.NOTE]
    assert all(f"[{name}]" in found[f"extra {name}"].remedy for name in lacking)
    if versions.installed("vllm") is None:
        wanted = {one.check: one for one in extras.extras(patient("caption.engine=vllm"))}
        assert wanted["extra vllm"].gravity == Gravity.BROKEN
    assert extras.wanted_by(patient("caption.engine=vllm", "variant=fedavg").config) == set(), "it captions nothing"
    assert extras.wanted_by(patient("caption.dir=s3://bucket/captions").config) == {"s3"}


def test_a_library_that_is_missing_or_old_is_named() -> None:
    asked = {"no-such-thing>=1": "is not installed", "numpy>=999": "expected >=999", "numpy>=1": ""}
    for text, said in asked.items():
        told = versions.lack(versions.Requirement(text))
        assert said in told and bool(said) == bool(told), text
    assert any(one.name == "torch" for one in versions.required())
    assert [one.name for one in versions.required("openai")] == ["openai"]


def test_torchvision_computes(patient: Patients) -> None:
    assert versions.torchvision(patient()).gravity == Gravity.FINE


def test_compiled_operations_are_looked_for_where_torch_puts_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert deepspeed_ops.build_folder() / "cpu_adam" == Path(cpp_extension._get_build_directory("cpu_adam", False))


def test_a_lock_that_a_killed_compiler_left_and_a_file_that_does_not_load_are_found(
    patient: Patients, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(compile_lock, "torch_waits_for_files", lambda: True)
    assert "not compiled" in deepspeed_ops.deepspeed_ops(patient()).found
    lock, built = tmp_path / "cpu_adam" / "lock", tmp_path / "cpu_adam" / "cpu_adam.so"
    lock.parent.mkdir()
    built.write_bytes(b"of another torch")
    found = deepspeed_ops.deepspeed_ops(patient())
    assert found.gravity == Gravity.NOTE and "does not load" in found.found
    with lock.open("w"):
        assert "does not load" in deepspeed_ops.deepspeed_ops(patient()).found, "somebody compiles"
    for path in (lock, built):
        os.utime(path, (time.time() - 3600,) * 2)
    assert "would wait without end" in deepspeed_ops.deepspeed_ops(patient()).found


def test_a_clock_that_was_set_is_noted(patient: Patients, tmp_path: Path) -> None:
    assert clock.clock(patient()).gravity == Gravity.FINE and list(tmp_path.iterdir()) == []
    assert clock.jump(Clocks(100.0, 5.0), Clocks(103.0, 8.0)) == 0
    assert clock.jump(Clocks(100.0, 5.0), Clocks(3703.0, 8.0)) == 3600
    apart = clock.between_hosts([100.0, 130.0, 100.1], ["a", "b", "c"])
    assert apart.gravity == Gravity.NOTE and apart.found == "a is 30.0 s behind b"
    assert clock.between_hosts([100.0, 100.2], ["a", "b"]).gravity == Gravity.FINE
