"""Steps of the pretraining trainer with everything in float64: what `test_launchers.py` starts as 1 or 2 ranks.

The project has no such precision. Here `.float()` is `.double()`, and the teachers are converted when they are loaded;
so what differs between the ranks' results and one process's is not float32's rounding.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from fedscale.config import load_config
from fedscale.data.build import ensure_shards
from fedscale.data.open_pool import open_pool
from fedscale.distributed.mesh import open_mesh
from fedscale.distributed.strategy import read_launch_file
from fedscale.models.clip import ClipTeacher
from fedscale.models.language import LanguageSide
from fedscale.runs import RunFolder
from fedscale.server.pretrain import lessons
from fedscale.server.pretrain.data import PairStream
from fedscale.server.pretrain.trainer import Trainer
from fedscale.session import Session


def main() -> None:
    folder, out, *words = sys.argv[1:]
    os.chdir(folder)
    in_float64()
    config, session = load_config(words), Session()
    settings = config.pretrain
    if config.launch:
        read_launch_file(config.launch)
    with open_mesh(torch.device("cpu"), 1, settings.timeout, print, "pretrain") as mesh:
        manifest = ensure_shards(config.data, session.reporter)
        pairs = PairStream(config, open_pool(config.data, session.reporter), RunFolder.of(config))
        trainer = Trainer(config, manifest, pairs, Path(out), mesh)
        batches = pairs.batches(0, settings.batch_size, mesh.rank, mesh.world)
        losses = [trainer.one_step(batches)["loss"] for _ in range(trainer.steps)]
        state = trainer.student_state()
        if mesh.is_main:
            save_file(state, Path(out) / "weights.safetensors")
            (Path(out) / "losses.json").write_text(json.dumps(losses))


def in_float64() -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double
    load_clip, load_language_side = lessons.load_clip, lessons.load_language_side

    def clip(*asked: Any) -> ClipTeacher:
        teacher = load_clip(*asked)
        teacher.model.double()
        return teacher

    def language(*asked: Any) -> LanguageSide:
        side = load_language_side(*asked)
        side.model.double()
        for norm in {type(m) for m in side.model.modules() if type(m).__name__ == "LlamaRMSNorm"}:
            norm.forward = rms_norm  # transformers' computes in float32
        return side

    lessons.load_clip, lessons.load_language_side = clip, language


def rms_norm(norm: nn.Module, hidden: Tensor) -> Tensor:
    return F.rms_norm(hidden, hidden.shape[-1:], norm.weight, norm.variance_epsilon)


if __name__ == "__main__":
    main()
