"""Teachers for machines that can reach no weights: trained from scratch on the open pool and its crawl keywords.

Both are weaker than published ones; whoever turns them on (`configs/overlays/offline_teachers.yaml`) is told so, in
the run's log with their accuracy on the validation split, and in the report.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedscale import files, lock
from fedscale.config import Config, to_dict
from fedscale.data.balance import drawn_evenly
from fedscale.data.build import ensure_shards, shard_folder
from fedscale.data.folders import published_folder
from fedscale.data.manifest import Manifest
from fedscale.data.store import open_store
from fedscale.device import pick_device
from fedscale.errors import UserError
from fedscale.progress import Reporter
from fedscale.rng import numpy_generator
from fedscale.server.caption.prompts import of_kind
from fedscale.session import Session
from fedscale.teachers.optimiser import Schedule

LAYOUT = 2  # raise it when the training below changes, so that older teachers are not taken for its result
MARKER = "done.json"
TEMPLATES = {
    "description": "a photo of {a} {name}.",
    "conversation": "{a} {name}.",
    "reasoning": "it is {a} {name}, because it looks like {a} {name}.",
}


def ensure_offline_teachers(config: Config, folder: Path, session: Session) -> Config:
    """The config with both teachers in `folder/teachers-<fingerprint>/`, trained now unless they are there already.

    Of several processes (ranks, child runs, other jobs) one trains, and the others wait for it. Raises UserError where
    the pool is absent or too small, or has an image without a keyword; Stopped while waiting.
    """
    reporter = session.reporter
    manifest = ensure_shards(config.data, reporter)  # its own pool, even where data.pool names a foreign one
    inputs = _inputs(config, manifest)
    home = _home(folder, inputs)
    if not (home / MARKER).exists():
        path = home.with_name(f".{home.name}{lock.FILE}")
        with lock.held(path, home, session, wait=lambda owner: True):
            if not (home / MARKER).exists():
                _trained(config, manifest, inputs, home, reporter)
    return _using(config, home)


def located_offline_teachers(config: Config, folder: Path) -> Config:
    """The config with both teachers where `ensure_offline_teachers` puts them; nothing is built or trained.

    Raises UserError where there are no shards yet.
    """
    manifest = Manifest.load(shard_folder(config.data))
    return _using(config, _home(folder, _inputs(config, manifest)))


def _trained(config: Config, manifest: Manifest, inputs: dict[str, Any], home: Path, reporter: Reporter) -> None:
    reporter.say(
        "offline teachers: no published weights are used; a small CLIP and a small LLaVA captioner are trained "
        f"from scratch on the open pool's keywords, into {home}"
    )
    with published_folder(home) as fresh:
        card = _train(config, manifest, fresh, reporter)
        files.write_json(fresh / MARKER, {**card, "inputs": inputs})
    reporter.say(_line(card))


def _home(folder: Path, inputs: dict[str, Any]) -> Path:
    return folder / f"teachers-{files.fingerprint(inputs)[:8]}"


def _using(config: Config, home: Path) -> Config:
    clip = dataclasses.replace(config.teachers.clip, model=str(home / "clip"), pretrained=None)
    mllm = dataclasses.replace(config.teachers.mllm, model=str(home / "llava"), revision=None)
    return dataclasses.replace(config, teachers=dataclasses.replace(config.teachers, clip=clip, mllm=mllm))


def evenly(keywords: Sequence[str], seed: int) -> np.ndarray:
    """Indices, about as many as there are images, in which every keyword comes equally often.

    The pool is the clients' long tail turned round: teachers trained on it as it is prefer the classes that clients
    hold least of, and alignment hands that on (CIFAR-10-LT, IF 100: Many fell from 71 to 16).
    """
    words = np.asarray(keywords)
    names = sorted(set(keywords))
    share = math.ceil(len(words) / len(names))
    draws = numpy_generator(seed, "offline evenly")
    return np.concatenate([drawn_evenly(np.flatnonzero(words == name), share, draws) for name in names])


def keyword_texts(keywords: Sequence[str]) -> dict[str, list[str]]:
    """The text of each kind that a keyword alone can give: no more is known of these images."""
    return {kind: [_fill(template, keyword) for keyword in keywords] for kind, template in TEMPLATES.items()}


def _fill(template: str, keyword: str) -> str:
    word = keyword.replace("_", " ")
    return template.replace("{a}", "an" if word[:1].lower() in "aeiou" else "a").replace("{name}", word)


def _inputs(config: Config, manifest: Manifest) -> dict[str, Any]:
    return {
        "layout": LAYOUT,
        "seed": config.caption.seed,
        "data": manifest.fingerprint,
        "image_size": config.data.image_size,
        "offline": to_dict(config.teachers.offline),
        "prompt": config.teachers.clip.prompt,
        "questions": _questions(config),
    }


def _questions(config: Config) -> dict[str, list[str]]:
    for kind in TEMPLATES:
        if any(len(turns) > 1 for turns in of_kind(config.caption.prompts, kind)):
            raise UserError(
                f"caption.prompts.{kind}: offline teachers answer single questions, not a conversation of several; "
                "use caption.prompt_file=configs/prompts/plain.yaml"
            )
    prompts = {kind: [turns[0] for turns in of_kind(config.caption.prompts, kind)] for kind in TEMPLATES}
    if config.teachers.mllm.question not in prompts["conversation"]:
        prompts["conversation"].append(config.teachers.mllm.question)
    return prompts


def _train(config: Config, manifest: Manifest, out: Path, reporter: Reporter) -> dict[str, Any]:
    # Only here: a run whose teachers are trained already imports neither training code nor open_clip.
    from fedscale.teachers.clip import ClipSize, train_clip
    from fedscale.teachers.llava import LlavaSize, train_llava

    settings, device, began = config.teachers.offline, str(pick_device(config)), time.perf_counter()
    side = config.data.image_size
    if side % 8:
        raise UserError(f"data.image_size={side}: offline teachers see patches of 8 pixels; choose a multiple of 8")
    images, keywords = _pool(config, manifest, reporter)
    even = evenly(keywords, config.caption.seed)
    images, keywords = images[torch.from_numpy(even)], [keywords[i] for i in even]
    clip_schedule = Schedule(
        epochs=settings.clip_epochs,
        batch_size=settings.batch_size,
        lr=settings.lr,
        muon_lr=20 * settings.lr,
        augment="crop_flip",
        seed=config.caption.seed,
    )
    mllm_schedule = dataclasses.replace(clip_schedule, epochs=settings.mllm_epochs, augment="flip")
    size = ClipSize(image_size=side, patch_size=8 if side <= 64 else side // 8)
    prompts = [_prompted(config, keyword) for keyword in keywords]
    known = [_prompted(config, name) for name in manifest.class_names]
    train_clip(images, [prompts], out / "clip", size, clip_schedule, known, reporter, device)
    train_llava(
        images,
        keyword_texts(keywords),
        _questions(config),
        out / "clip",
        out / "llava",
        LlavaSize(),
        mllm_schedule,
        [text for texts in keyword_texts(manifest.class_names).values() for text in texts],
        reporter,
        device,
    )
    seconds = time.perf_counter() - began
    return {"seconds": round(seconds, 1), "images": len(images), **_accuracy(config, manifest, out, reporter)}


def _prompted(config: Config, keyword: str) -> str:
    return config.teachers.clip.prompt.replace("{}", keyword.replace("_", " "))


def _pool(config: Config, manifest: Manifest, reporter: Reporter) -> tuple[Tensor, list[str]]:
    """The pool's images, uint8 [N, H, W, 3], and keywords: all, or `teachers.offline.images` drawn at random."""
    store = open_store(manifest, "pool", config.data.image_size, reporter, config.data.max_corrupt)
    if any(not keyword for keyword in store.keywords):
        raise UserError(f"{manifest.root}: the pool has images without a crawl keyword; offline teachers need one each")
    wanted = config.teachers.offline.images or len(store.keys)
    if len(store.keys) < 2:
        raise UserError(f"{manifest.root}: the pool has {len(store.keys)} images; offline teachers need at least 2")
    chosen = np.sort(numpy_generator(config.caption.seed, "offline pool").permutation(len(store.keys))[:wanted])
    return torch.from_numpy(np.array(store.images[chosen])), [str(store.keywords[i]) for i in chosen]


def _accuracy(config: Config, manifest: Manifest, out: Path, reporter: Reporter) -> dict[str, Any]:
    """Class accuracy of both teachers in percent, on the validation split (never the test set), where there is one."""
    if not manifest.num_samples("validation"):
        return {"clip": None, "llava": None}
    from fedscale.teachers.accuracy import clip_accuracy, llava_accuracy

    store = open_store(manifest, "validation", config.data.image_size, reporter, config.data.max_corrupt)
    images, labels = torch.from_numpy(np.array(store.images)), torch.from_numpy(store.labels)
    names, asked = manifest.class_names, {kind: several[0] for kind, several in _questions(config).items()}
    zero_shot = clip_accuracy(out / "clip", images, labels, names, config.teachers.clip.prompt)
    captions = llava_accuracy(out / "llava", images, labels, names, asked)
    return {"clip": round(zero_shot, 1), "llava": {kind: round(value, 1) for kind, value in captions.items()}}


def _line(card: Mapping[str, Any]) -> str:
    trained = f"offline teachers: trained on {card['images']:,} pool images in {card['seconds']:.0f} s"
    if card["clip"] is None:
        return f"{trained}; no validation split to measure them on"
    captions = ", ".join(f"{kind} {value:.1f}" for kind, value in card["llava"].items())
    return f"{trained}; validation accuracy: CLIP zero-shot {card['clip']:.1f} %, captions name the class: {captions} %"
