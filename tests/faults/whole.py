"""Whether a run folder has anything in it that could be taken for whole and is not."""

import json
from pathlib import Path

from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from fedscale import files
from fedscale.checkpoints import MARKER


def assert_whole(folder: Path, scratch: Path) -> None:
    """Every file under its final name can be read to its end, every checkpoint with a marker can be loaded.

    What was under way has a name that begins with a dot, or no marker beside it.
    """
    seen = 0
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        parts = path.relative_to(folder).parts
        checkpoint = next((path.parents[n] for n, part in enumerate(parts[-2::-1]) if _is_checkpoint(part)), None)
        if any(part.startswith(".") for part in parts) or (checkpoint and not (checkpoint / MARKER).exists()):
            continue
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".jsonl":
            files.read_jsonl(path)
        elif path.suffix == ".safetensors":
            assert load_file(path), path
        elif path.name == MARKER and (path.parent / "state").is_dir():
            dcp_to_torch_save(path.parent / "state", scratch / "state.pt")
        seen += 1
    assert seen > 3, f"{folder} is about empty"


def names(folder: Path) -> list[str]:
    """The files under their final names."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(path) for path in found if not any(part.startswith(".") for part in path.parts))


def _is_checkpoint(name: str) -> bool:
    return name.startswith(("step_", "round_"))
