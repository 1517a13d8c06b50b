"""The data that a config reads: shards built and whole, else originals to build them of; the imported pool."""

from __future__ import annotations

import shutil

from fedscale.data import manifest as manifests
from fedscale.data.build import ensure_shards, shard_folder
from fedscale.data.manifest import Manifest, ShardInfo
from fedscale.data.sources import source_folder
from fedscale.doctor.finding import Finding, Gravity
from fedscale.doctor.folders import existing
from fedscale.doctor.patient import Patient
from fedscale.progress import SilentReporter
from fedscale.storage import PIPE, size_of

LOOKED_AT = 1_000  # shards at most; a look is a stat, or a request
REMOTE = 1


def shards(patient: Patient) -> Finding:
    """Raises UserError where neither shards nor originals are there, or other shards than the config's."""
    data, check = patient.config.data, "shards"
    folder = shard_folder(data)
    if (folder / manifests.FILE).exists():
        manifest = ensure_shards(data, SilentReporter()) if data.dir is not None else Manifest.load(folder)
        return _whole(check, manifest, f"{len(manifest.class_names)} classes, {_images(manifest, 'train')}")
    if data.dir is not None and not data.recipe:
        ensure_shards(data, SilentReporter())  # raises: nothing says what they would be built from
    built = "`fedscale prepare CONFIG` builds them; a job would, at its start"
    if data.needs_folder:
        originals = source_folder(data, "data.")
        return Finding(check, Gravity.NOTE, f"not built yet; the originals are at {originals}", built)
    return Finding(check, Gravity.NOTE, f"not built yet; format {data.format} reads no folder of originals", built)


def pool(patient: Patient) -> Finding | None:
    """The imported pool. Raises UserError where it has no manifest, or where its store refuses us."""
    if patient.config.data.pool is None:
        return None
    manifest = Manifest.load(patient.config.data.pool)
    return _whole("open pool", manifest, _images(manifest, "pool"))


def store(patient: Patient) -> Finding | None:
    """Room for the images as the clients hold them, decoded, beside the shards; None where these are not built."""
    data, check = patient.config.data, "client store"
    folder = shard_folder(data)
    if not (folder / manifests.FILE).exists():
        return None
    manifest = Manifest.load(folder)
    splits = [split for split in ("train", patient.config.eval.split) if manifest.splits.get(split)]
    left = [split for split in splits if not (folder / "store" / f"{split}-{data.image_size}" / "index.json").exists()]
    needed = sum(manifest.num_samples(split) for split in left) * data.image_size**2 * 3
    free = shutil.disk_usage(existing(folder)).free
    facts = {"splits_to_decode": left, "bytes_to_write": needed, "free_bytes": free}
    if not left:
        return Finding(check, Gravity.FINE, f"decoded: {', '.join(splits)}", facts=facts)
    found = f"{', '.join(left)} not decoded yet: takes {needed / 1e9:.2f} of {free / 1e9:,.0f} GB free"
    if needed > free:
        return Finding(check, Gravity.BROKEN, found, "free some space, or have data.dir on a larger disk", facts)
    return Finding(check, Gravity.FINE, found, facts=facts)


def _whole(check: str, manifest: Manifest, told: str) -> Finding:
    """Whether the manifest's shards are there with its bytes, as far as looking takes moments."""
    infos = [shard for shards in manifest.splits.values() for shard in shards]
    urls = [manifest.url(shard) for shard in infos]
    if any(url.startswith(PIPE) for url in urls):
        return Finding(check, Gravity.UNCHECKED, f"{told}; read through a command, which was not run")
    remote = [url for url in urls if "://" in url]
    looked = infos[: REMOTE if remote else LOOKED_AT]
    wrong = [shard.file for shard in looked if not _as_described(manifest, shard)]
    facts = {"shards": len(infos), "looked_at": len(looked), "wrong": wrong[:10]}
    extent = f"{len(infos)} shards" if len(looked) == len(infos) else f"{len(looked)} of {len(infos)} shards looked at"
    if wrong:
        remedy = "copy or build them again; `fedscale shards verify` reads them whole"
        return Finding(check, Gravity.BROKEN, f"{len(wrong)} missing or of another size: {wrong[0]}", remedy, facts)
    return Finding(check, Gravity.FINE, f"{told}; {extent}, there with the manifest's sizes", facts=facts)


def _as_described(manifest: Manifest, shard: ShardInfo) -> bool:
    try:
        return size_of(manifest.url(shard)) == shard.bytes
    except FileNotFoundError:
        return False


def _images(manifest: Manifest, split: str) -> str:
    return f"{manifest.num_samples(split):,} images of {split}"
