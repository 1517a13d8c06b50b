"""DeepSpeed's operations for CPUs, which it compiles at first use: there and loading, or compilable."""

from __future__ import annotations

import os
import shutil
import sysconfig
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

from fedscale.distributed.compile_lock import OPS, build_folder, is_dead
from fedscale.doctor.finding import Finding, Gravity
from fedscale.doctor.patient import Patient

CHECK = "DeepSpeed's ops"


def deepspeed_ops(patient: Patient) -> Finding:
    """Compiled and loading; else whether they can be compiled. Runs on GPUs by our launch files need neither."""
    folder = build_folder()
    facts = {"folder": str(folder)}
    for name in OPS:
        lock = folder / name / "lock"
        if is_dead(lock):
            found = f"{lock}: left by a killed process; training by ZeRO takes it away, others would wait without end"
            return Finding(CHECK, Gravity.NOTE, found, "delete it", facts)
    built = {name: folder / name / f"{name}.so" for name in OPS if (folder / name / f"{name}.so").exists()}
    for name, path in built.items():
        if reason := _refusal(name, path):
            return Finding(CHECK, Gravity.NOTE, f"{path}: does not load ({reason})", f"delete {path.parent}", facts)
    left = [name for name in OPS if name not in built]
    if not left:
        return Finding(CHECK, Gravity.FINE, f"{', '.join(OPS)}: compiled, and they load", facts=facts)
    if missing := _missing_tools():
        remedy = "install them, to train by ZeRO on CPUs; other launches need none"
        return Finding(
            CHECK, Gravity.NOTE, f"{', '.join(left)}: not compiled, without {', '.join(missing)}", remedy, facts
        )
    found = (
        f"{', '.join(left)}: not compiled yet; compiler, ninja and headers are there, ZeRO on CPUs compiles at first"
    )
    return Finding(CHECK, Gravity.FINE, found, facts=facts)


def _refusal(name: str, path: Path) -> str:
    """Why a compiled extension cannot be loaded; empty when it can."""
    try:
        loader = ExtensionFileLoader(name, str(path))
        spec = spec_from_loader(name, loader)
        assert spec is not None
        loader.exec_module(module_from_spec(spec))
    except ImportError as error:
        return next(iter(str(error).splitlines()), "ImportError")
    return ""


def _missing_tools() -> list[str]:
    compiler = os.environ.get("CXX", "c++")
    tools = [tool for tool in (compiler, "ninja") if shutil.which(tool) is None]
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return tools if header.exists() else [*tools, "Python's headers"]
