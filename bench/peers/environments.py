"""One virtual environment a peer: `python bench/peers/environments.py [--folder bench/.peers] [pfl fedlab ...]`.

torch (and torchvision, NumPy) are pinned to the versions of the environment that runs this script, so that torch peers
and our engine compare frameworks and not two releases of torch. uv makes the environments: they share its cache by hard
links, so that torch's libraries are downloaded and stored once. Bytecode is compiled, as pip does, so that start-up
times are those of an ordinary installation. Only Python and pip are needed; uv is installed beside the environments.
An environment whose import check passes is kept; delete its folder to make it anew.

No peer needs --no-deps: pfl 0.6.0 admits torch <3, FedLab 1.3.0 any torch, Flower asks for none. Flower pins ray 2.51.1
in its extra `simulation`. FedJAX 0.0.17 admits any JAX since 0.4.4, of which its runner restores one removed name.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

UV = "uv==0.13.9"
# What each peer is asked for, with the versions that `versions` finds.
REQUIREMENTS: dict[str, tuple[str, ...]] = {
    "pfl": ("pfl==0.6.0", "torch=={torch}", "numpy=={numpy}", "psutil"),
    "fedlab": ("fedlab==1.3.0", "torch=={torch}", "torchvision=={torchvision}", "numpy=={numpy}", "psutil"),
    "flower": ("flwr[simulation]==1.29.0", "torch=={torch}", "numpy=={numpy}", "psutil"),
    "fedjax": ("fedjax==0.0.17", "jax==0.10.2", "jaxlib==0.10.2", "dm-haiku==0.0.17", "numpy=={numpy}", "psutil"),
}
IMPORTS: dict[str, str] = {
    "pfl": "import torch, pfl.aggregate.simulate, pfl.model.pytorch",
    "fedlab": "import torch, fedlab.contrib.algorithm.basic_client",
    "flower": "import torch, ray, flwr.simulation",
    "fedjax": "import jax, haiku, fedjax",
}


def versions() -> dict[str, str]:
    """The pinned versions, without the local part (`+cu132`), which an index does not list."""
    names = ("torch", "torchvision", "numpy")
    return {name: importlib.metadata.version(name).split("+")[0] for name in names}


def uv_of(folder: Path) -> str:
    """The path of uv, installed on first use into an environment of its own."""
    uv = folder / ".uv" / "bin" / "uv"
    if not uv.exists():
        subprocess.run([sys.executable, "-m", "venv", str(uv.parents[1])], check=True)
        subprocess.run([str(uv.with_name("python")), "-m", "pip", "install", "--quiet", UV], check=True)
    return str(uv)


def imports(python: Path, peer: str) -> bool:
    return python.exists() and subprocess.run([str(python), "-c", IMPORTS[peer]], capture_output=True).returncode == 0


def make(folder: Path, peer: str) -> None:
    """The environment `folder/peer`. Raises CalledProcessError where uv or the import check fails."""
    python = folder / peer / "bin" / "python"
    if imports(python, peer):
        print(f"{peer}: kept, {python} imports it")
        return
    uv = uv_of(folder)
    subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder / peer)], check=True)
    pinned = versions()
    wanted = [requirement.format(**pinned) for requirement in REQUIREMENTS[peer]]
    subprocess.run(
        [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", str(python), *wanted], check=True
    )
    subprocess.run([str(python), "-c", IMPORTS[peer]], check=True)
    print(f"{peer}: {' '.join(wanted)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peers", nargs="*", choices=[*REQUIREMENTS, []], help="all when none is named")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parents[1] / ".peers")
    options = parser.parse_args()
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n")
    os.nice(10)
    for peer in options.peers or REQUIREMENTS:
        make(folder, peer)


if __name__ == "__main__":
    main()
