"""The folder in which documented commands are carried out in CI, on tiny data, each once."""

from __future__ import annotations

import argparse
import io
import os
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from fedscale import files
from fedscale.cli import app
from fedscale.config import load_config, to_yaml
from fedscale.storage import storage_at
from tests.docs.commands import ROOT
from tests.docs.plans import PLANS, SWAPS, Plan, expanded

BIN = Path(sys.executable).parent


class Desk:
    """`folder` holds small.yaml, its shards in shapes/, a pool of tars in laion/ and in `bucket`, images in cifar/."""

    def __init__(self, folder: Path, bucket: str) -> None:
        self.folder, self.bucket = folder, bucket
        self._done: set[str] = set()
        config = load_config(["configs/demo.yaml", "variant=full", "name=small", *expanded(["QUICK", "SHAPES"])])
        files.write_text(folder / "small.yaml", to_yaml(config))
        _fedscale(["prepare", "small.yaml"])
        tars = sorted((folder / "shapes" / "pool").glob("*.tar"))
        assert len(tars) >= 2
        shutil.copytree(folder / "shapes" / "pool", folder / "laion")
        for tar in tars:
            storage_at(f"{bucket}/pool").publish(tar.name, tar.read_bytes())
        for split, count in (("train", 30), ("test", 2)):
            labels = list(range(10)) * count
            rows = [{"bytes": _picture(number), "path": f"{number}.png"} for number in range(len(labels))]
            (folder / "cifar").mkdir(exist_ok=True)
            pq.write_table(
                pa.table({"img": rows, "label": labels}), folder / "cifar" / f"{split}-00000-of-00001.parquet"
            )

    def carry_out(self, text: str) -> None:
        """The command with this text by its plan, after those that come before it; once."""
        plan = PLANS[text]
        if text in self._done:
            return
        for before in plan.after:
            self.carry_out(before)
        words = self._words(text, plan)
        if plan.make:
            self._make(text.split()[1:], plan)
        elif plan.bench is not None:
            _bench([*words[1:], *plan.bench], run=bool(plan.bench))
        elif plan.launched:
            _launched(words, self.folder)
        else:
            _fedscale(words[1:])
        assert not plan.leaves or list(self.folder.glob(plan.leaves)), f"{text}: no {plan.leaves}"
        self._done.add(text)

    def _words(self, text: str, plan: Plan) -> list[str]:
        swaps = {**SWAPS, **plan.swaps}
        words = [swaps.get(word, word).replace("BUCKET", self.bucket) for word in shlex.split(text)]
        return [*words, *expanded(plan.more)]

    def _make(self, words: list[str], plan: Plan) -> None:
        """What make calls, of an environment whose commands only tell; then this call, smaller."""
        environment = self.folder / "environment"
        told = environment / "told"
        for name in ("python", "fedscale"):
            program = environment / "bin" / name
            program.parent.mkdir(parents=True, exist_ok=True)
            program.write_text(f'#!/bin/bash\nif [ "$2" != pip ]; then echo {name} "$@" >> {told}; fi\n')
            program.chmod(0o755)
        told.write_text("")
        subprocess.run(["make", "-C", ROOT, *words, f"VENV={environment}"], check=True, capture_output=True)
        assert told.read_text() == f"{plan.make}\n"
        if plan.more:
            _fedscale([*plan.make.split()[1:], *expanded(plan.more)])


def _fedscale(words: list[str]) -> None:
    result = CliRunner().invoke(app, words)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, f"fedscale {shlex.join(words)}\n{result.output}"


def _launched(words: list[str], folder: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"[-5000:]


class _Read(Exception):
    """The options of a script are read; it goes no further."""


def _bench(words: list[str], run: bool) -> None:
    script = ROOT / words[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(script), *words[1:]])
        patch.setattr(sys, "path", [str(script.parent), *sys.path])
        if run:
            runpy.run_path(str(script), run_name="__main__")
            return
        parse = argparse.ArgumentParser.parse_args

        def read(parser: argparse.ArgumentParser, *given: object) -> argparse.Namespace:
            parse(parser, *given)
            raise _Read

        patch.setattr(argparse.ArgumentParser, "parse_args", read)
        with pytest.raises(_Read):
            runpy.run_path(str(script), run_name="__main__")


def _picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
