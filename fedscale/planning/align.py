"""Stage 3: drawing the balanced set with its teacher, training on it, two evaluations (counted beside)."""

from __future__ import annotations

import math

from fedscale.config.schema import Config
from fedscale.planning.cluster import Cluster
from fedscale.planning.collectives import BUCKET, Strategy, sending, sent_in_step, state_bytes
from fedscale.planning.counts import Counts
from fedscale.planning.shapes import FLOAT, Student
from fedscale.planning.teachers import Clip, MllmShape
from fedscale.planning.work import StageWork, Work

LOOKED_AT = 1.5  # images that the teacher sees for each that is taken, where its own label decides [assumed]
ANSWER = 6  # tokens of an answer that names a class [assumed]


def align_work(
    config: Config,
    counts: Counts,
    student: Student,
    cluster: Cluster,
    strategy: Strategy,
    clip: Clip | None,
    mllm: MllmShape | None,
) -> StageWork:
    """The stage; `clip` or `mllm` is the teacher, whichever is asked."""
    settings, world = config.align, cluster.world
    images = settings.images_per_class * counts.classes
    seen = images * (LOOKED_AT if settings.labels == "teacher" else 1.0)
    steps = settings.epochs * math.ceil(images / settings.batch_size)
    conv = "fp32" if cluster.node.is_cpu else "tf32"  # torch's default for convolutions
    each = math.ceil(settings.batch_size / world)
    work = student.passes.trained(each * steps * cluster.stretch, conv)
    work += student.update(steps) * cluster.stretch
    work += Work({"crowd": work.flops * cluster.crowding})
    if world > 1:
        gradients = weights = FLOAT * student.parameters
        sent = sent_in_step(strategy, world, gradients, weights) * steps
        buckets = math.ceil(gradients / BUCKET)
        work += sending(sent, (2 * student.norms + buckets + 1) * steps, cluster)
    teacher, memory = _teacher(config, seen, counts, cluster, clip, mllm)
    work += teacher + Work({"write": float(3 * student.bytes), "start": 1})
    state = state_bytes(student.parameters, strategy, world, optimiser=FLOAT if settings.momentum else 0)
    size = config.data.image_size
    return StageWork(
        "align",
        work,
        world,
        0.0,
        "",
        {"images": float(images), "steps": float(steps), "flops": student.passes.flops * settings.batch_size * steps},
        {"model": state, "activations": student.passes.saved * each, "teacher": memory},
        "a smaller align.batch_size",
        {"set": images * (3.0 * size**2 + 8 + FLOAT * counts.classes), "model": float(student.bytes)},
        _obstacles(config, world, images),
        ["the set is drawn by one rank while the others wait"] if world > 1 else [],
    )


def _teacher(
    config: Config, seen: float, counts: Counts, cluster: Cluster, clip: Clip | None, mllm: MllmShape | None
) -> tuple[Work, float]:
    """Decoding the images and asking the teacher, on one rank; and the bytes of its weights."""
    work = Work({"image": seen, "pixel": seen * counts.image_pixels, "read": seen * counts.image_bytes})
    batches = math.ceil(seen / config.align.batch_size)
    if clip:
        work += clip.image.once(seen, "fp32") + Work({"call": float(clip.image.calls * batches)})
        work += clip.text.once(counts.classes, "fp32")
        return work, FLOAT * clip.parameters
    if mllm:
        half = "fp32" if cluster.node.is_cpu else "bf16"
        prompt = mllm.image_tokens + 24
        flops = mllm.language.flops(prompt) + counts.classes * mllm.language.flops(ANSWER, prompt)
        work += mllm.image.once(seen, half) + Work({f"matmul.{half}": flops * seen})
        work += Work({"call": float(mllm.language.calls * math.ceil(seen * counts.classes / 512))})
        return work, (FLOAT if half == "fp32" else 2) * mllm.parameters
    return work, 0.0


def _obstacles(config: Config, world: int, images: int) -> list[str]:
    smallest = images // math.ceil(images / config.align.batch_size)
    if smallest < world:
        return [f"align.batch_size={config.align.batch_size}: batches of {smallest} for {world} ranks; raise it"]
    return []
