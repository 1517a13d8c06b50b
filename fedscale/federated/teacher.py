"""CLIP's view of the clients' images for methods whose clients learn from it: each image encoded once a run.

The logits do not depend on augmentation (METHOD.md, the table), so that they are numbers kept beside the labels.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedscale import files
from fedscale.config import Config, to_dict
from fedscale.data.manifest import Manifest
from fedscale.data.store import ClientStore
from fedscale.errors import Stopped
from fedscale.session import Session

BATCH = 250  # images
LAYOUT = 2  # raise it when the numbers change, so that older files are not taken for them


def clip_view(
    config: Config, manifest: Manifest, store: ClientStore, device: torch.device, session: Session
) -> dict[str, Tensor]:
    """`logits` float32 [N, C] of the store's images at CLIP's own scale, and `classes` [C, E], the prompts' embeddings.

    Computed once and kept in the experiment's `shared/` folder. Raises UserError without the teacher's weights,
    Stopped after a signal.
    """
    names = manifest.class_names
    inputs = {
        "layout": LAYOUT,
        "data": manifest.fingerprint,
        "rows": [store.split, config.data.image_size, len(store.keys)],
        "clip": to_dict(config)["teachers"]["clip"],
    }
    path = Path(config.out) / config.name / "shared" / f"clip-{files.fingerprint(inputs)}.safetensors"
    if path.exists():
        try:
            return load_file(path)
        except SafetensorError:
            session.reporter.say(f"{path}: cut short; made again")
    from fedscale.models.clip import load_clip

    clip = load_clip(config.teachers.clip, device)
    classes, logits = clip.encode_classes(names, config.teachers.clip.prompt), []
    with session.reporter.task("CLIP's view of the clients' images", len(store.keys), "images") as task:
        for start in range(0, len(store.keys), BATCH):
            if session.stop_requested:
                raise Stopped("federate: stopped while CLIP encoded the clients' images; the same command begins anew")
            images = torch.from_numpy(store.images[start : start + BATCH].copy())
            logits.append(clip.class_logits(images, classes).cpu())
            task.advance(len(images))
    view = {"logits": torch.cat(logits), "classes": classes.cpu().contiguous()}
    with files.published(path) as temporary:
        save_file(view, temporary)
    return view
