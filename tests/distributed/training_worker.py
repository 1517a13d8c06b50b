"""A few steps of a small model under the strategy of a launch file; what `test_training.py` starts as 1 to 3 ranks.

Every rank takes its uneven part of the same global batches. Rank 0 writes losses, weights and parameter bytes.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fedscale import files
from fedscale.distributed.checkpoint import checkpoint_of_all, newest_of_all
from fedscale.distributed.mesh import open_mesh
from fedscale.distributed.strategy import read_launch_file
from fedscale.distributed.training import Training

BATCH, WIDTH = 10, 12


class Block(nn.Module):
    def __init__(self, norm: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4) if norm == "batch" else nn.GroupNorm(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.norm(self.conv(x)))


class Net(nn.Module):
    """A trained body and head around a frozen layer, as a student in front of a frozen language model."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        self.body = nn.Sequential(Block(norm), Block(norm))
        self.frozen = nn.Linear(4, WIDTH).requires_grad_(False)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, images: Tensor, labels: Tensor, weight: float) -> Tensor:
        images = images.to(self.head.weight.dtype)  # DeepSpeed's bf16 casts the weights alone
        logits = self.head(torch.tanh(self.frozen(self.body(images).mean((2, 3)))))
        return nn.functional.cross_entropy(logits.double(), labels, reduction="sum") * weight


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("out", type=Path)
    asked.add_argument("--launch", default="")
    asked.add_argument("--dtype", default="float32")
    asked.add_argument("--norm", default="group")
    asked.add_argument("--accumulation", type=int, default=1)
    asked.add_argument("--steps", type=int, default=10)
    asked.add_argument("--save", type=int, default=0, help="the step after which to save, and end")
    asked.add_argument("--precision", default="no")
    asked.add_argument("--times", type=int, default=1, help="how often to train, each time on a mesh of its own")
    words = asked.parse_args()
    torch.set_num_threads(1)
    dtype = getattr(torch, words.dtype)
    torch.set_default_dtype(dtype)
    if words.launch:
        read_launch_file(words.launch)
    for _ in range(words.times):
        train(words, dtype)


def train(words: argparse.Namespace, dtype: torch.dtype) -> None:
    with open_mesh(torch.device("cpu"), 1, 60, print, "test") as mesh:
        torch.manual_seed(3)
        net = Net(words.norm)
        optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1.0)
        training = Training(
            mesh, net, optimizer, words.precision, micro_batch=4, accumulation=words.accumulation, max_norm=0.5
        )
        first, losses, norms = 0, [], []
        if found := newest_of_all(mesh, words.out, "step"):
            first = found[0]
            training.load(found[1] / "state", files.read_json(found[1] / "train_state.json"))
        training.module.train()
        for step in range(first, words.save or words.steps):
            loss, norm = one_step(training, step, words.accumulation, dtype)
            losses.append(loss)
            norms.append(norm)
        training.average_buffers()
        if words.save:
            with checkpoint_of_all(mesh, words.out, "step", words.save) as temporary:
                training.save(temporary / "state")
                if mesh.is_main:
                    files.write_json(temporary / "train_state.json", training.facts())
        state = training.whole_state(net)
        held = mesh.gather_objects(training.parameter_bytes())
        if mesh.is_main:
            save_file(state, words.out / "weights.safetensors")
            result = {"losses": losses, "norms": norms, "bytes": held, **training.facts()}
            (words.out / "result.json").write_text(json.dumps(result))


def one_step(training: Training, step: int, accumulation: int, dtype: torch.dtype) -> tuple[float, float | None]:
    mesh, total = training.mesh, torch.zeros(1, dtype=torch.float64)
    for part in range(accumulation):
        draws = torch.Generator().manual_seed(100 * step + part)
        count = BATCH // accumulation + (part < BATCH % accumulation)
        images = torch.randn(count, 4, 5, 5, generator=draws, dtype=torch.float64).to(dtype)
        labels = images.mean((2, 3))[:, :3].argmax(1)
        last = part + 1 == accumulation
        with training.passing(last):
            own = slice(mesh.rank, None, mesh.world)
            loss = training.module(images[own], labels[own], 1 / BATCH)
            training.backward(loss, last)
        total += loss.detach().double()
    return float(mesh.sum_over_clients(total)), training.step(1e-2)


if __name__ == "__main__":
    main()
