"""What of the site is made from the code, as hooks of mkdocs: the references, and the README's sections.

The references of config, sweep and methods are made from the config's dataclasses and the methods' table when the site
is built, and lie nowhere else. A page shows a section of the README by a line `<!-- README: HEADLINE -->`, and what
stands before the first one by a line without.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

from described import Key, sections
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from fedscale.config.method_options import PATH
from fedscale.config.methods import BUILT_IN, options_of
from fedscale.config.schema import Config
from fedscale.config.sweep import SweepConfig

ROOT = Path(__file__).parent.parent
INCLUDE = re.compile(r"^<!-- README: *(.*?) *-->$", re.MULTILINE)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
MARKS = "Where a value is from: [P] the method's paper, [C] its official code, [D] a decision of this project."
PROTOCOL = "For the protocol, [C] is the official code of CReFF or CLIP2FL."


def on_files(files: Files, config: Any) -> Files:
    """Add the references to the site."""
    for name, text in (("config", config_page()), ("sweep", sweep_page()), ("methods", methods_page())):
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Put the README's sections where a page asks for them."""
    return with_readme(markdown, (ROOT / "README.md").read_text(encoding="utf-8"), page.file.src_uri)


def with_readme(markdown: str, readme: str, page: str) -> str:
    """The page with the README's sections in it, their headlines below the page's.

    Raises PluginError for a headline that the README does not have.
    """
    parts = re.split(r"^## (.*)\n", readme.partition("\n")[2], flags=re.MULTILINE)
    found = {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}

    def put(line: re.Match[str]) -> str:
        if line[1] not in found:
            raise PluginError(f"{page}: the README has no section '{line[1]}'; it has {', '.join(parts[1::2])}")
        above = re.findall(r"^(#+) ", markdown[: line.start()], flags=re.MULTILINE)
        text = LINK.sub(_relinked, found[line[1]].strip())
        return re.sub(r"^##(?=#+ )", above[-1] if above else "#", text, flags=re.MULTILINE)

    return INCLUDE.sub(put, markdown)


def _relinked(link: re.Match[str]) -> str:
    """A link of the README for a page at the top of the site; of a file that is not in the site, its name alone."""
    image, text, target = link.groups()
    if target.startswith("http"):
        return link[0]
    if target.startswith("docs/"):
        return f"{image}[{text.removeprefix('docs/')}]({target.removeprefix('docs/')})"
    return f"`{target}`"


def config_page() -> str:
    """The reference of all keys of a config."""
    intro = (
        "Made from the dataclasses in `fedscale/config/`, which check every key. A key stands in a YAML file, or is a "
        "word, `federate.lr=0.05`; `--dry-run` shows what a config comes to. Where … stands, the config decides."
    )
    return "\n\n".join(["# Config", intro, f"{MARKS} {PROTOCOL}", *_tables(Config, "experiment")])


def sweep_page() -> str:
    """The reference of all keys of a sweep."""
    intro = "The keys of the file that `fedscale sweep` reads, made from `fedscale/config/sweep.py`."
    return "\n\n".join(["# Sweep", intro, *_tables(SweepConfig, "sweep")])


def _tables(kind: type, whole: str) -> list[str]:
    parts = [(f"## {section.path or whole}", plain(section.text), table(section.keys)) for section in sections(kind)]
    return [text for part in parts for text in part if text]


def methods_page() -> str:
    """The reference of the built-in methods: what each does, costs and lets one choose."""
    from fedscale.federated.methods import method_class
    from fedscale.federated.methods.table import method_rows

    rows = [row for row in method_rows() if row["from"] == "built in"]
    lines = [
        "# Methods\n\nMade from the methods' classes, like `fedscale methods`. `federate.method=NAME` chooses one "
        "and `federate.options.KEY=VALUE` sets what it lets one choose; an option of another method is an error.",
        MARKS,
        "| Method | Citation | Clients cut over ranks |\n|---|---|---|\n"
        + "\n".join(
            f"| [`{r['method']}`](#{r['method']}) | {cell(r['citation'])} | {cell(r['shard'])} |" for r in rows
        ),
    ]
    for row in rows:
        costs = [f"- {part}: {plain(row[part])}" for part in ("client", "upload", "server") if row[part]]
        (section,) = sections(options_of(row["method"]), PATH)
        lines += [
            f"## {row['method']}",
            f"{plain(row['citation'])}.",
            plain(inspect.getdoc(method_class(row["method"])) or ""),
            "Beyond FedAvg:\n\n" + "\n".join(costs) if costs else "",
            table(section.keys),
        ]
    assert len(rows) == len(BUILT_IN)
    return "\n\n".join(line for line in lines if line)


def table(keys: tuple[Key, ...]) -> str:
    """A row a key; nothing for no keys."""
    rows = [
        f"| `{key.name}` | {key.kind} | `{key.default}` | {cell(describe(key))} |".replace('`""`', "empty")
        for key in keys
    ]
    return "\n".join(["| Key | Type | Default | |", "|---|---|---|---|", *rows]) if rows else ""


def describe(key: Key) -> str:
    """The comment, then what the checks expect."""
    expected = "; ".join(dict.fromkeys(key.expected))
    return ". ".join(text for text in (key.comment, f"Expected: {expected}" if expected else "") if text)


def cell(text: str) -> str:
    """A text in a table's cell."""
    return plain(text).replace("|", "\\|")


def plain(text: str) -> str:
    """A docstring's or comment's text, whose signs are meant literally outside its code."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*_\[\]])", r"\\\1", part).replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts)
