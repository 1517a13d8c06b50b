"""Open pools imported: tars that exist already (img2dataset's, say) stay where they lie and get a manifest of ours."""

from __future__ import annotations

import functools
import os
import posixpath
import re
from pathlib import Path

from fedscale import files
from fedscale.data import manifest as manifests
from fedscale.data.manifest import Manifest, ShardInfo
from fedscale.data.members import survey
from fedscale.data.parallel import mapped
from fedscale.errors import UserError
from fedscale.progress import Reporter
from fedscale.storage import PIPE, expand, is_remote

FORMAT = "import"
TAR = re.compile(r"[^\s'\"|<>;&()]+\.tar[^\s'\"|<>;&()]*")  # the tar that a command names


def import_pool(
    patterns: list[str],
    out: Path,
    reporter: Reporter,
    hash: bool = False,
    jobs: int | None = None,
    skip_broken: bool = False,
) -> Manifest:
    """Walk through all shards that `patterns` name and write `out/manifest.json` over them, in one piece at the end.

    Local shards are read by their headers alone, or whole to `hash` them (SHA-256); remote ones are read whole.
    Raises UserError for patterns without a match, shards that cannot share a manifest, an `out` that holds other
    shards, and broken shards, all of them named, unless `skip_broken` leaves them out.
    """
    out = Path(out)
    earlier = _earlier(out)
    urls = [url for pattern in patterns for url in expand(pattern)]
    base, names = _below_one_base(urls, out)
    _check_stems(names)
    infos, broken = [], []
    with reporter.task(f"importing {out.name}", len(urls), "shards") as task:
        look = functools.partial(survey, hashed=hash)
        for name, found in zip(names, mapped(look, urls, jobs, task), strict=True):
            task.advance()
            if isinstance(found, str):
                broken.append({"name": name, "reason": found})
            else:
                infos.append(ShardInfo(name, found.samples, found.bytes, found.sha256, {}, found.members, found.index))
    if broken:
        listed = "; ".join(f"{entry['name']} ({entry['reason']})" for entry in broken)
        if not skip_broken:
            raise UserError(
                f"{len(broken)} of {len(urls)} shards are broken: {listed}; copy them again, or leave them out with "
                "--skip-broken"
            )
        reporter.say(f"left out, {len(broken)} of {len(urls)} shards are broken: {listed}")
    if not infos:
        raise UserError(f"{' '.join(patterns)}: no whole shard among {len(urls)}; copy them again")
    manifest = Manifest(
        root=out,
        name=out.absolute().name,
        class_names=(),
        fingerprint=files.fingerprint([FORMAT, *([info.file, info.bytes, info.index] for info in infos)]),
        splits={"pool": tuple(infos)},
        recipe={"format": FORMAT, "patterns": patterns, "hash": hash},
        excluded=broken,
        base=base,
        # A new search is for the user to start: until then, what the last one found stays left out.
        near_duplicates=earlier.near_duplicates if earlier else {},
    )
    manifest.save()
    if earlier and earlier.near_duplicates and earlier.splits != manifest.splits:
        of = earlier.near_duplicates["of"]
        reporter.say(
            f"the shards changed: search for near-duplicates of {of} again (`fedscale shards near-duplicates`)"
        )
    return manifest


def _earlier(out: Path) -> Manifest | None:
    """The earlier import that is made anew. Raises UserError for anything else of ours: it would lose its manifest."""
    if not (out / manifests.FILE).exists():
        return None
    found = Manifest.load(out)
    if found.recipe.get("format") == FORMAT:
        return found
    raise UserError(f"{out}: holds built shards; choose another folder for the imported pool's manifest")


def _below_one_base(urls: list[str], out: Path) -> tuple[str | None, list[str]]:
    """The manifest's base, and each shard's name below it. Raises UserError where there is no such common base."""
    parts = [_parts(url) for url in urls]
    around = {(head, tail) for head, _, tail in parts}
    relative = {not path.startswith("/") for _, path, _ in parts}
    if len(around) > 1 or len(relative) > 1:
        kinds = sorted(f"{head}…{tail}" if head else "a local folder" for head, tail in around)
        raise UserError(
            f"{' and '.join(kinds[:2])}: shards of one pool lie in one store, or come from one command; import them as "
            "pools of their own"
        )
    (head, tail), paths = around.pop(), [path for _, path, _ in parts]
    folder = posixpath.commonprefix(paths)
    folder = folder[: folder.rfind("/") + 1]  # with its slash, or "" where even the buckets differ
    names = [path[len(folder) :] for path in paths]
    if head.startswith(PIPE):
        return f"{head}{folder}{{}}{tail}", names
    if not folder:
        raise UserError(f"{head}: shards of one pool lie in one bucket; import them as pools of their own")
    beside = not head and folder == os.path.join(os.path.abspath(out), "")
    return (None if beside else f"{head}{folder.rstrip('/') or '/'}"), names


def _parts(url: str) -> tuple[str, str, str]:
    """(head, path, tail) of a shard: ("", "/d/0.tar", ""), ("s3://", "b/0.tar", ""), ("pipe:cat ", "0.tar", "|cat")."""
    if url.startswith(PIPE):
        found = list(TAR.finditer(url, len(PIPE)))
        if len(found) != 1:
            raise UserError(f"{url}: names {len(found)} tars; expected a command that names one, as `pipe:cat 0.tar`")
        return url[: found[0].start()], found[0][0], url[found[0].end() :]
    if is_remote(url):
        head, _, path = url.partition("://")
        return f"{head}://", path, ""
    return "", os.path.abspath(url), ""


def _check_stems(names: list[str]) -> None:
    """A shard's captions are filed under its stem."""
    held: dict[str, str] = {}
    for name in names:
        stem = Path(name).stem
        if stem in held:
            what = "is named twice" if held[stem] == name else f"has the same name as {held[stem]}"
            raise UserError(
                f"{name}: {what}, and captions are filed by shard name; name it once, rename it, or import each folder "
                "as a pool of its own"
            )
        held[stem] = name
