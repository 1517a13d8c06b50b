"""Where configs, recipes and the demo's teachers lie: in the current folder, else the package, else the checkout."""

from __future__ import annotations

from pathlib import Path

from fedscale.errors import UserError

PACKAGE = Path(__file__).resolve().parent


def find(path: str, what: str = "file") -> Path:
    """Resolve a path: as given, else among the files installed with the package, else inside the checkout.

    Raises UserError when there is nothing at any of these places.
    """
    wanted = Path(path).expanduser()
    candidates = [wanted]
    if not wanted.is_absolute():
        candidates.append(PACKAGE / wanted)
        if (PACKAGE.parent / "setup.py").exists():
            candidates.append(PACKAGE.parent / wanted)
    for candidate in candidates:
        if candidate.exists():
            return candidate
    raise UserError(f"{path}: no such {what}, neither in {Path.cwd()} nor among those installed with fedscale")
