"""Every command of README and docs is carried out, smaller; the whole ones are `make test-full`'s."""

import json
import re
import shlex
import subprocess
import sys
import uuid
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from fedscale.cli import app
from tests.docs.commands import PAGES, ROOT, commands_of, documented
from tests.docs.desk import Desk
from tests.docs.plans import PLANS

DOCUMENTED = documented()
BARE = re.compile(r"fedscale( shards)? [a-z-]+( --[a-z-]+)?")  # a command's name, as one speaks of it
CARRIED_OUT = [text for text, plan in PLANS.items() if text in DOCUMENTED and not plan.test]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, s3_server: str) -> Iterator[Desk]:
    import boto3
    import s3fs

    folder, bucket = tmp_path_factory.mktemp("desk"), f"crawl-{uuid.uuid4().hex[:8]}"
    keys = {"AWS_ACCESS_KEY_ID": "user", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, value in {**keys, "AWS_ENDPOINT_URL": s3_server}.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket=bucket)
        s3fs.S3FileSystem.clear_instance_cache()
        yield Desk(folder, f"s3://{bucket}")
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.slow
@pytest.mark.parametrize("text", CARRIED_OUT)
def test_it_does_what_it_says(text: str, desk: Desk) -> None:
    desk.carry_out(text)


@pytest.mark.slow
def test_the_doctor_checks_what_the_page_shows(desk: Desk) -> None:
    page = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
    shown = re.findall(r"^[✓–•✗]  (\S.*?)  ", page, flags=re.MULTILINE)
    told = json.loads(CliRunner().invoke(app, ["doctor", "small.yaml", "--json"]).stdout)
    names = [one["check"] for one in told["checks"]]
    assert len(shown) > 12 and [name for name in names if name in shown] == shown
    fields = set(re.findall(r"`(\w+)`", page.partition("has, for each check, ")[2].partition("\n\n")[0]))
    assert set(told["checks"][0]) <= fields and {one["gravity"] for one in told["checks"]} <= fields


def test_every_command_has_a_plan() -> None:
    """A new one needs an entry there; and, where not every machine can do it, "needs a GPU" behind it on its line."""
    lacking = [c for c in DOCUMENTED.values() if c.text not in PLANS and not (is_bare(c.text) and is_planned(c.text))]
    assert not lacking, f"without a plan in tests/docs/plans.yaml: {[f'{c.page}: {c.text}' for c in lacking]}"
    assert set(PLANS) <= set(DOCUMENTED), f"no page has {set(PLANS) - set(DOCUMENTED)}"
    assert len(CARRIED_OUT) > 50


def is_bare(text: str) -> bool:
    return bool(BARE.fullmatch(text))


def is_planned(text: str) -> bool:
    """Whether a command with all these words is planned."""
    name, *options = re.split(r" (?=--)", text.removesuffix(" --help"))
    return any(
        planned.startswith(f"{name} ") and all(option in planned.split() for option in options) for planned in PLANS
    )


def test_what_another_test_carries_out_is_there() -> None:
    for text, plan in PLANS.items():
        if plan.test:
            file, _, name = plan.test.partition("::")
            source = (ROOT / file).read_text(encoding="utf-8")
            assert re.search(rf"^def {name}\(", source, flags=re.MULTILINE) and plan.form in source, text


def test_a_new_command_is_seen_wherever_it_stands() -> None:
    page = (
        "```bash\nfedscale a \\\n  b=1   # needs GPUs: many\npython x.py 'a # b'; make c\n```\n"
        "| `fedscale d` (needs hours) | `fedscale`, `federate.lr` |\n```\noutput\n```\n"
    )
    found = [(c.text, c.needs) for c in commands_of(page, "p.md")]
    assert found == [
        ("fedscale a b=1", "GPUs"), ("python x.py 'a # b'", ""), ("make c", ""), ("fedscale d", "hours")
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"p\.md: a command outside a bash block: fedscale x y"):
        list(commands_of("```\nfedscale x y\n```\n", "p.md"))


def parsed(words: list[str]) -> dict[str, Any]:
    """The arguments that the command is given for these words, without carrying it out."""
    seen: list[dict[str, Any]] = []

    def instead(command: Any) -> None:
        for below in getattr(command, "commands", {}).values():
            instead(below)
        if not hasattr(command, "commands"):
            command.callback = lambda **given: seen.append(given)

    root = typer.main.get_command(app)
    instead(root)
    root.main(words, prog_name="fedscale", standalone_mode=False)
    return seen[0] if seen else {}


def test_every_command_parses_as_it_stands() -> None:
    found = [text for text in DOCUMENTED if re.search(r"(?:^|-m |--module )fedscale ", text)]
    assert len(found) > 50
    for text in found:
        words = shlex.split(re.split(r"(?:^|-m |--module )fedscale ", text.replace("'", ""))[1])
        try:
            parsed(words)
        except Exception as error:  # of typer's own copy of click
            assert type(error).__name__ == "MissingParameter" and is_bare(text), f"{text}: {error}"


def test_a_command_with_an_option_that_is_not_there_does_not_parse() -> None:
    with pytest.raises(Exception, match="No such option"):
        parsed(["submit", "configs/demo.yaml", "--node", "2"])


def test_an_activated_environment_has_the_command(tmp_path: Path) -> None:
    activate = Path(sys.prefix) / "bin" / "activate"
    if not activate.exists():
        pytest.skip("the tests do not run in a virtual environment")
    asked = ["bash", "-c", 'source "$1"; command -v fedscale', "bash", str(activate)]
    found = subprocess.run(asked, capture_output=True, text=True, check=True, env={"PATH": "/usr/bin:/bin"})
    assert Path(found.stdout.strip()) == activate.with_name("fedscale")


def test_the_extras_that_are_named_are_there() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in PAGES)
    named = set(re.findall(r"'\.\[(\w+)\]'", text))
    assert len(named) >= 3 and named <= set(metadata.metadata("mllm-fedscale").get_all("Provides-Extra") or [])
