"""A non-editable install carries all that runs need: configs, recipes, the demo teachers, the report template."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the built wheel unpacked in it, and nothing of the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), "."]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (wheel,) = folder.glob("mllm_fedscale-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_holds_configs_recipes_teachers_and_template(installed: Path) -> None:
    for kind, folder in (("configs", "fedscale/configs"), ("launch", "fedscale/launch")):
        for ending in ("yaml", "json", "sbatch", "sh", "def"):
            ours = {str(path.relative_to(kind)) for path in Path(kind).rglob(f"*.{ending}")}
            assert {str(p.relative_to(installed / folder)) for p in (installed / folder).rglob(f"*.{ending}")} == ours
    recipes = {path.name for path in Path("shards").glob("*.yaml")}
    assert {path.name for path in (installed / "fedscale/shards").glob("*")} == recipes
    assert (installed / "fedscale/teachers/shapes/clip/open_clip_model.safetensors").stat().st_size > 100_000
    assert (installed / "fedscale/teachers/shapes/llava/model.safetensors").stat().st_size > 100_000
    assert (installed / "fedscale/report/report.html.jinja").exists()
    assert not (installed / "tests").exists() and not (installed / "configs").exists()


def test_it_runs_from_another_folder_by_the_configs_names(installed: Path, tmp_path: Path) -> None:
    words = ["federate", "configs/demo.yaml", "variant=fedavg", "seeds=[1]", "federate.rounds=1", "threads=1"]
    script = f"import sys; sys.path.insert(0, {str(installed)!r}); sys.argv = ['fedscale', *{words}]\n"
    script += "from fedscale.cli import main; import fedscale; assert fedscale.__file__.startswith(sys.path[0]); main()"
    ran = subprocess.run(
        [sys.executable, "-S", "-c", _with_libraries(script)], capture_output=True, text=True, cwd=tmp_path
    )
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "runs/demo/fedavg-s1/federate/model.safetensors").exists()
    assert list((tmp_path / "shards").iterdir())


def _with_libraries(script: str) -> str:
    """The script with site-packages on its path but without their .pth files, which would bring the checkout back."""
    import numpy

    return f"import sys; sys.path.append({str(Path(numpy.__file__).parent.parent)!r})\n{script}"
