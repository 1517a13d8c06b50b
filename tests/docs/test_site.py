"""The site says what the code says: every key, every method, tests that exist."""

import dataclasses
import re
import sys
import typing
from pathlib import Path
from typing import Any, Literal

import pytest
from mkdocs.exceptions import PluginError

from fedscale.config import load_config
from fedscale.config.checks import require
from fedscale.config.method_options import PATH
from fedscale.config.methods import BUILT_IN, options_of
from fedscale.config.schema import Config
from fedscale.config.sweep import SweepConfig
from fedscale.errors import UserError

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path.relative_to(DOCS).as_posix(): path.read_text(encoding="utf-8") for path in DOCS.rglob("*.md")}
TEXT = "\n".join([README, *PAGES.values()])


@pytest.fixture(scope="module")
def generate() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(DOCS), *sys.path])
        import generate

        return generate


def keys_of(kind: type, path: str = "") -> list[str]:
    found = []
    for name, hint in typing.get_type_hints(kind).items():
        inner = keys_of(hint, f"{path}{name}.") if dataclasses.is_dataclass(hint) else [f"{path}{name}"]
        found += inner
    return found


def test_every_key_of_a_config_is_in_the_reference(generate: Any) -> None:
    page = generate.config_page()
    keys = keys_of(Config)
    assert len(keys) > 150
    assert [key for key in keys if page.count(f"\n| `{key}` |") != 1] == []
    page = generate.sweep_page()
    assert [key for key in keys_of(SweepConfig) if page.count(f"\n| `{key}` |") != 1] == []


def test_every_method_and_its_options_are_in_the_reference(generate: Any) -> None:
    parts = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", generate.methods_page(), flags=re.DOTALL | re.MULTILINE))
    assert list(parts) == list(BUILT_IN)
    for name, text in parts.items():
        assert re.findall(rf"^\| `{PATH}\.(\w+)` ", text, flags=re.MULTILINE) == keys_of(options_of(name)), name
    assert "equation 2" in parts["fedprox"] and "| `federate.options.mu` | float | `0.01` |" in parts["fedprox"]


@pytest.mark.parametrize(
    "word",
    ["federate.lr=0", "caption.batch_size=0", "data.partition.alpha=0", "pretrain.alpha.start=2", "data.classes=1"],
)
def test_what_a_refused_value_is_told_stands_behind_its_key(word: str, generate: Any) -> None:
    with pytest.raises(UserError) as refused:
        load_config(["configs/demo.yaml", word])
    key, expected = word.partition("=")[0], str(refused.value).partition("expected ")[2]
    (row,) = re.findall(rf"^\| `{re.escape(key)}` .*", generate.config_page(), flags=re.MULTILINE)
    assert expected and row.endswith(f"Expected: {expected} |")


WORDS = ("one", "two")
SINGLE = "timm:"


@dataclasses.dataclass(frozen=True)
class Base:
    """What is below."""

    lanes: int = 8  # side by side | 0 = WORDS

    def __post_init__(self) -> None:
        require(self.lanes != 3, "x.lanes", self.lanes, f"another than {self.lanes}")


@dataclasses.dataclass(frozen=True)
class Sample(Base):
    """A `sample` of <all>."""

    kind: Literal["a", "b"] = "b"  # [D]
    name: str | None = None
    sizes: tuple[int, ...] = (1, 2)
    model: str = SINGLE

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sizes", "name"):
            require(bool(name), f"x.{name}", 0, f"some of {', '.join(WORDS)}")
        if self.name:
            require(self.model != SINGLE, "x.model", self.model, "more")


def test_a_row_has_type_default_comment_and_range(generate: Any) -> None:
    (section,) = generate.sections(Sample, "x")
    assert generate.plain(section.text) == "A `sample` of &lt;all>."
    assert generate.table(section.keys).splitlines()[2:] == [
        "| `x.lanes` | int | `8` | side by side \\| 0 = `one`, `two`. Expected: not 3 but another than … |",
        '| `x.kind` | `a`, `b` | `"b"` | \\[D\\] |',
        "| `x.name` | str or null | `null` | Expected: some of one, two |",
        "| `x.sizes` | list of int | `[1, 2]` | Expected: some of one, two |",
        '| `x.model` | str | `"timm:"` | Expected: not timm: but more |',
    ]


@dataclasses.dataclass(frozen=True)
class Astray:
    """Checks a key that it has not."""

    lr: float = 1.0

    def __post_init__(self) -> None:
        require(self.lr > 0, "rate", self.lr, "above 0")


def test_a_check_of_a_key_that_is_not_there_is_refused(generate: Any) -> None:
    with pytest.raises(ValueError, match="Astray checks rate, which is no key"):
        generate.sections(Astray)


def test_a_page_shows_the_readmes_section_with_its_links_and_headlines(generate: Any) -> None:
    readme = (
        "# x\nTop.\n## One\n[docs/a.md](docs/a.md) ![i](docs/i.png) [c](configs/c)\n### Deep\n[w](https://w)\n## Two\nT"
    )
    page = "# Page\n\n<!-- README: One -->\n## Part\n<!-- README: -->"
    assert generate.with_readme(page, readme, "p.md") == (
        "# Page\n\n[a.md](a.md) ![i](i.png) `configs/c`\n## Deep\n[w](https://w)\n## Part\nTop."
    )
    with pytest.raises(PluginError, match=r"p\.md: the README has no section 'Three'; it has One, Two"):
        generate.with_readme("<!-- README: Three -->", readme, "p.md")


def test_every_section_of_the_readme_is_on_one_page() -> None:
    shown = re.findall(r"^<!-- README: *(.*?) *-->$", "\n".join(PAGES.values()), flags=re.MULTILINE)
    assert sorted(shown) == sorted(["", *re.findall(r"^## (.*)$", README, flags=re.MULTILINE)])


def test_the_tests_that_the_pages_name_are_there() -> None:
    named = set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT))
    assert len(named) > 20
    for file, name in named:
        assert re.search(rf"^def {name}\(", (ROOT / file).read_text(encoding="utf-8"), flags=re.MULTILINE), (file, name)
