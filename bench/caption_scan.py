"""How long captioning takes to see what is done: the skip scan of 10,000 finished shards, the status of 100,000.

    python bench/caption_scan.py [--shards 10000 100000] [--json]

Markers and row files are written as the stage writes them (rows of one image a shard), into a temporary folder. Both
commands are timed whole: reading the manifest, listing the folder, reading every marker.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
import time
from pathlib import Path

from fedscale import files
from fedscale.config.schema import Config
from fedscale.data.manifest import Manifest, ShardInfo
from fedscale.runs import RunFolder
from fedscale.server.caption import ledger, run, sidecar
from fedscale.server.caption.rows import STATUSES, Row
from fedscale.server.caption.status import status
from fedscale.session import Session

SAMPLES = 10_000  # a shard's, as its marker says


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results = []
    for shards in arguments.shards:
        with tempfile.TemporaryDirectory() as folder:
            results.append(measure(Path(folder), shards))
    if arguments.json:
        print(json.dumps(results, indent=1))
        return
    print(f"{'shards':>8} {'skip scan':>10} {'status':>8} {'whole second run':>17}   (seconds)")
    for row in results:
        print(f"{row['shards']:>8,} {row['scan']:>10.2f} {row['status']:>8.2f} {row['run']:>17.2f}")


def measure(folder: Path, shards: int) -> dict[str, float]:
    """Seconds of a scan, of `--status`, and of a whole run that finds everything done."""
    infos = tuple(
        ShardInfo(f"pool/{number:06d}.tar", SAMPLES, 10**9, f"{number:064x}", {}, {"jpg": SAMPLES}, f"{number:016x}")
        for number in range(shards)
    )
    Manifest(folder / "pool", "pool", ("cat", "dog"), "f" * 16, {"pool": infos}, {}).save()
    config = Config(name="bench", out=str(folder / "runs"))
    data, caption = (dataclasses.replace(config.data, dir=str(folder / "pool")), config.caption)
    config = dataclasses.replace(config, data=data, caption=dataclasses.replace(caption, engine="template"))
    run_folder = RunFolder.of(config)
    home, made_by = run_folder.stage("caption"), sidecar.settings(config)
    home.mkdir(parents=True)
    write(home, infos, made_by)
    os.sync()  # the files just written must not be on their way to the disk while they are read

    began = time.perf_counter()
    manifest = Manifest.load(folder / "pool")
    entries = ledger.scan(sidecar.storage(config, run_folder), sidecar.selected(config, manifest), made_by)
    scan = time.perf_counter() - began
    assert all(entry.state == "done" for entry in entries)

    began = time.perf_counter()
    found = status(config, run_folder)
    told = time.perf_counter() - began
    assert found["shards"]["done"] == shards

    began = time.perf_counter()
    summary = run(config, run_folder, Session())
    again = time.perf_counter() - began
    assert summary is not None and summary["images"] == shards * SAMPLES
    return {"shards": shards, "scan": scan, "status": told, "run": again}


def write(home: Path, infos: tuple[ShardInfo, ...], made_by: dict) -> None:
    """What the stage leaves, without its fsyncs."""
    line = Row("00000000", "ok", "cat", {}, {"description": ["A photo of a cat."]}).line()
    for info in infos:
        marker = {
            "n_in": SAMPLES,
            "n_ok": SAMPLES - 3,
            "statuses": dict.fromkeys(STATUSES, 7),
            "n_comparable": SAMPLES,
            "n_named": SAMPLES - 1,
            "unreadable": [],
            "tokens": 70 * SAMPLES,
            "input": info.file,
            "input_bytes": info.bytes,
            "input_sha256": info.sha256,
            "output_bytes": len(line),
            "output_sha256": "0" * 64,
            "fingerprint": files.fingerprint(made_by),
            "seconds": {"read": 1.25, "generate": 100.125, "write": 0.5},
        }
        (home / sidecar.rows_name(info)).write_text(line)
        (home / sidecar.marker_name(info)).write_text(json.dumps(marker, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
