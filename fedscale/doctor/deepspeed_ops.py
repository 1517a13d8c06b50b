"""DeepSpeed's operations for CPUs, which it compiles at first use: there and loading, or compilable."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import sysconfig
import time
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import torch

from fedscale.doctor.finding import Finding, Gravity
from fedscale.doctor.patient import Patient

CHECK = "DeepSpeed's ops"
OPS = ("cpu_adam", "deepspeed_shm_comm")
STALE = 600.0  # seconds after which nobody compiles any more: torch would wait for the lock without end


def deepspeed_ops(patient: Patient) -> Finding:
    """Compiled and loading; else whether they can be compiled. Runs on GPUs by our launch files need neither."""
    folder = build_folder()
    facts = {"folder": str(folder)}
    for name in OPS:
        lock = folder / name / "lock"
        if lock.exists() and time.time() - lock.stat().st_mtime > STALE:
            return Finding(
                CHECK,
                Gravity.NOTE,
                f"{lock}: left by a killed process; the next one waits without end",
                "delete it",
                facts,
            )
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


def build_folder() -> Path:
    """Where torch puts compiled extensions, without making it."""
    if root := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(root)
    logging.disable(logging.WARNING)  # importing it tells that there is no CUDA; `devices` has told more
    try:
        from torch.utils.cpp_extension import get_default_build_root
    finally:
        logging.disable(logging.NOTSET)
    kind = f"cu{torch.version.cuda.replace('.', '')}" if torch.version.cuda else "cpu"
    return Path(get_default_build_root()) / f"py{sys.version_info.major}{sys.version_info.minor}{sys.abiflags}_{kind}"


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
