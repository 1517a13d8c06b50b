"""What the pretraining trainer costs beside a bare PyTorch loop, and what stored embeddings save.

`python bench/pretrain.py` captions some of the demo's pool (engine `template`), then steps three trainers in turn, one
step each, on the same batches: the trainer with the live teacher, a bare loop (plain module, AdamW, backward, clip,
step; the same pairs, texts, augmentation and teacher, nothing else), and the trainer with stored embeddings. A figure
is the median over steps of the ratios within one turn. `--student` and `--image-size` choose other sizes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from fedscale.config import load_config
from fedscale.config.schema import Config
from fedscale.data.augment import augment, normalise
from fedscale.data.build import ensure_shards
from fedscale.data.open_pool import open_pool
from fedscale.distributed.mesh import Mesh
from fedscale.models import initial_model
from fedscale.models.clip import load_clip
from fedscale.models.language import load_language_side
from fedscale.runs import RunFolder
from fedscale.server import caption
from fedscale.server.pretrain.data import PairStream
from fedscale.server.pretrain.task import Distillation, Whole
from fedscale.server.pretrain.text import IGNORED, TextEncoder, Tokens
from fedscale.server.pretrain.trainer import Trainer
from fedscale.session import Session

Step = Callable[[], Any]


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--steps", type=int, default=40)
    asked.add_argument("--warm", type=int, default=5)
    asked.add_argument("--threads", type=int, default=1)
    asked.add_argument("--json", action="store_true")
    asked.add_argument("words", nargs="*", help="key=value, as of the command line")
    words = asked.parse_args()
    torch.set_num_threads(words.threads)
    with tempfile.TemporaryDirectory() as folder:
        ways = ways_of(Path(folder), words.words)
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(words.warm + words.steps):
            for name, step in ways.items():
                began = time.process_time()
                step()
                if turn >= words.warm:
                    seconds[name].append(time.process_time() - began)
    bare = seconds["bare loop"]
    rows = [
        {
            "way": name,
            "milliseconds": 1000 * statistics.median(taken),
            "of_bare": statistics.median(a / b for a, b in zip(taken, bare, strict=True)),
        }
        for name, taken in seconds.items()
    ]
    stored = statistics.median(a / b for a, b in zip(seconds["trainer, live"], seconds["trainer, stored"], strict=True))
    if words.json:
        print(json.dumps({"rows": rows, "stored_speedup": stored}, indent=1))
        return
    table = Table("way", "CPU ms a step", "of the bare loop", box=None)
    for row in rows:
        table.add_row(str(row["way"]), f"{row['milliseconds']:.1f}", f"{row['of_bare']:.3f}")
    Console().print(table)
    Console().print(f"stored embeddings: {stored:.2f} times the live teacher's images per second")


def ways_of(folder: Path, words: list[str]) -> dict[str, Step]:
    """A step of each way, all on the same captioned images in the same order."""
    config = _config(folder, "live", words)
    run = RunFolder.of(config)
    caption.run(config, run, Session())
    return {
        "bare loop": _bare(config, run),
        "trainer, live": _trainer(config, run, "live"),
        "trainer, stored": _trainer(_config(folder, "stored", words), run, "stored"),
    }


def _config(folder: Path, teacher: str, words: list[str]) -> Config:
    fixed = ["configs/demo.yaml", f"out={folder}", "name=bench", "variant=full", "seeds=[]", "variants={full: {}}"]
    fixed += ["caption.engine=template", "caption.max_images=400", "caption.features.enabled=true"]
    return load_config([*fixed, "pretrain.epochs=1000", f"pretrain.teacher={teacher}", *words])


def _trainer(config: Config, run: RunFolder, name: str) -> Step:
    session = Session()
    manifest = ensure_shards(config.data, session.reporter)
    pairs = PairStream(config, open_pool(config.data, session.reporter), run)
    trainer = Trainer(config, manifest, pairs, run.path / name, Mesh())
    batches = pairs.batches(0, config.pretrain.batch_size)
    return lambda: trainer.one_step(batches)


def _bare(config: Config, run: RunFolder) -> Step:
    """The loop as anyone would write it for one process."""
    settings, session, cpu = config.pretrain, Session(), torch.device("cpu")
    manifest = ensure_shards(config.data, session.reporter)
    pairs = PairStream(config, open_pool(config.data, session.reporter), run)
    clip, language = load_clip(config.teachers.clip, cpu), load_language_side(config, cpu)
    encoder = TextEncoder(language.tokenizer, language.chat_form, settings.max_text_tokens)
    student = initial_model(config, len(manifest.class_names))
    task = Distillation(student, language.model, clip.embed_dim, settings).train()
    trained = [p for p in task.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.lr)
    batches, draws = pairs.batches(0, settings.batch_size), torch.Generator().manual_seed(0)

    def step() -> None:
        batch = next(batches)[0]
        shown = normalise(augment(batch.images, settings.augment, draws), config.data.mean, config.data.std)
        tokens: Tokens = encoder.encode(batch.dialogues)
        read = clip.encode_texts(batch.descriptions).clone() if settings.contrastive_weight else None
        whole = Whole(len(batch.images), int((tokens.labels != IGNORED).sum()))
        loss = task(shown, clip.encode_images(batch.images).clone(), tokens, 0.5, whole, read)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, settings.clip_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step


if __name__ == "__main__":
    main()
