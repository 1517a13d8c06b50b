"""Stage 1b: the student, CLIP and the language model of every step; reading, gradients, checkpoints, the probe."""

from __future__ import annotations

import math

from fedscale.config.schema import Config
from fedscale.planning.cluster import Cluster
from fedscale.planning.collectives import BUCKET, Strategy, sending, sent_in_step, state_bytes
from fedscale.planning.counts import RECORD, Counts
from fedscale.planning.shapes import FLOAT, Decoder, Student
from fedscale.planning.teachers import Clip, words_of
from fedscale.planning.work import StageWork, Work
from fedscale.server.caption.prompts import of_kind
from fedscale.server.pretrain.data import KEPT_BYTES

ADAM = 8  # bytes of AdamW's state a parameter
KEPT_CHECKPOINTS = 2


def pretrain_work(
    config: Config,
    counts: Counts,
    student: Student,
    cluster: Cluster,
    strategy: Strategy,
    images: int,
    clip: Clip | None,
    language: Decoder | None,
    answer_tokens: int,
) -> StageWork:
    """The stage on so many captioned images. Without `language` the objective is `keyword`; `clip` is asked if live."""
    settings, world = config.pretrain, cluster.world
    steps = max(1, settings.epochs * images // settings.batch_size)
    each = math.ceil(settings.batch_size / world)
    seen = float(each * steps)
    conv = "bf16" if settings.mixed_precision == "bf16" else "tf32"
    conv, half = ("fp32", "fp32") if cluster.node.is_cpu else (conv, "bf16")
    micro = math.ceil(each / settings.accumulation)
    tokens = _tokens(config, answer_tokens)
    heads, adapters = _beside(config, student, clip, language)
    trained = student.parameters + heads + adapters
    work = student.passes.trained(seen, conv) + student.update(steps * settings.accumulation)
    work += Work({"traffic": 5.0 * FLOAT * trained * steps})  # AdamW, beyond what `update` counts
    if language:
        passes = {"frozen": 2, "lora": 2, "full": 3}[settings.language_model] + settings.activation_checkpointing
        flops = passes * language.flops(tokens) + 6 * (adapters + heads)
        traffic = passes * tokens * language.layers * language.width * 16 * FLOAT * seen
        traffic += passes * FLOAT / 2 * language.parameters * steps * settings.accumulation
        calls = passes * language.calls * steps * settings.accumulation
        work += Work({f"matmul.{half}": flops * seen, "traffic": traffic, "call": float(calls)})
    if clip and settings.teacher == "live":
        work += clip.image.once(seen, "fp32") + Work({"call": float(clip.image.calls * steps * settings.accumulation)})
        if settings.contrastive_weight > 0:
            work += clip.text.once(seen, "fp32") + Work(
                {"call": float(clip.text.calls * steps * settings.accumulation)}
            )
    work += _probe(config, counts, student, conv) * (1 / cluster.stretch)
    work = work * cluster.stretch + Work({"crowd": work.flops * cluster.stretch * cluster.crowding})
    frozen = (language.parameters if language else 0) - (adapters if settings.language_model == "full" else 0)
    if world > 1:
        sent = sent_in_step(
            strategy, world, FLOAT * trained, FLOAT * trained + 2.0 * max(0, frozen), settings.accumulation
        )
        messages = 2 * student.norms * settings.accumulation + math.ceil(FLOAT * trained / BUCKET) + 3
        work += sending(sent * steps, float(messages * steps), cluster)
    work += _loading(config, counts, cluster, images, steps * settings.batch_size)
    saves = math.ceil(steps / settings.save_every)
    checkpoint = float(trained * (FLOAT + ADAM) + FLOAT * student.statistics)
    work += Work({"write": checkpoint * saves, "start": 1})
    weight = FLOAT if half == "fp32" or settings.language_model == "full" else 2
    whole = float(weight * language.parameters) if language else 0.0
    return StageWork(
        "pretrain",
        work,
        world,
        1 - settings.batch_size / (each * world),
        f"a pretrain.batch_size that {world} ranks divide",
        {"images": float(images), "steps": float(steps), "flops": work.flops * world / cluster.stretch},
        _memory(config, student, strategy, world, trained, frozen, micro, tokens, clip, language, half),
        "launch=launch/accelerate/fsdp2.yaml, more pretrain.accumulation, or pretrain.activation_checkpointing=true",
        {"checkpoints": (KEPT_CHECKPOINTS + 1) * checkpoint, "model": float(student.bytes)},
        _obstacles(config, world, strategy, whole, cluster.node.usable),
        _notes(config, counts, images, tokens, world, whole if strategy.name == "fsdp2" else 0.0),
    )


def _tokens(config: Config, answer: int) -> float:
    """Positions of an image's text before the language model: visual tokens, question, answer, cut at the most."""
    lengths = []
    for kind in config.caption.kinds:
        offered = of_kind(config.caption.prompts, kind)
        turns = sum(map(len, offered)) / len(offered)
        lengths.append(turns * (words_of([question for one in offered for question in one]) + answer))
    text = sum(lengths) / len(lengths)
    return config.pretrain.visual_tokens + min(float(config.pretrain.max_text_tokens), text)


def _beside(config: Config, student: Student, clip: Clip | None, language: Decoder | None) -> tuple[int, int]:
    """Trained parameters of the projectors and the contrastive head, and of the language model."""
    settings = config.pretrain
    if language is None:
        return 0, 0
    width, embedding = language.width, clip.width if clip else student.feature_dim
    heads = sum(
        (wide + 1) * width + (width + 1) * settings.visual_tokens * width for wide in (student.feature_dim, embedding)
    )
    if settings.contrastive_weight > 0:
        heads += (student.feature_dim + 1) * embedding + 1
    if settings.language_model == "full":
        return heads, language.parameters
    # r·(in + out) a linear layer of the blocks; theirs are 4 of the attention and 3 of an MLP about 2.7 times as wide.
    lora = settings.lora.rank * language.layers * (8 * width + 3 * 3.7 * width)
    return heads, int(lora) if settings.language_model == "lora" else 0


def _loading(config: Config, counts: Counts, cluster: Cluster, images: int, shown: float) -> Work:
    """Reading and decoding by the busiest rank's workers; a small pool stays in memory after the first time."""
    world, side = cluster.world, config.data.image_size
    decoded = images if images / world * 3.0 * side**2 <= KEPT_BYTES else shown
    size = counts.image_bytes + RECORD
    read = images if images * size <= KEPT_BYTES else shown
    # A large JPEG is decoded at 1/2, 1/4, 1/8 of its sides, neither below twice the size that is wanted.
    pixels, scale = counts.image_pixels, 1
    while config.pretrain.draft_decode and scale < 8 and math.sqrt(pixels) / (2 * scale) >= 2 * side:
        scale *= 2
    by = min(max(1, config.pretrain.workers), cluster.loader_cores) if config.pretrain.workers else 1
    mine = decoded / world * cluster.stretch
    return Work(
        {
            "image": mine / by,
            "pixel": mine * pixels / scale**2 / by,
            "read": read / world * size * cluster.per_node,
        }
    )


def _probe(config: Config, counts: Counts, student: Student, conv: str) -> Work:
    """The data-fraction figure at the end, by one rank alone: two models a fraction, trained and judged."""
    probe = config.pretrain.probe
    if not probe.enabled:
        return Work()
    models = 2 * len(probe.fractions)
    work = student.passes.trained(probe.steps * probe.batch_size, conv) + student.update(probe.steps)
    work += student.passes.once(counts.test, conv)
    work += Work({"call": float(student.passes.calls * math.ceil(counts.test / config.eval.batch_size))})
    return work * models


def _memory(
    config: Config,
    student: Student,
    strategy: Strategy,
    world: int,
    trained: int,
    frozen: float,
    micro: int,
    tokens: float,
    clip: Clip | None,
    language: Decoder | None,
    half: str,
) -> dict[str, float]:
    settings, itemsize = config.pretrain, 4 if half == "fp32" else 2
    parts = {
        "trained": state_bytes(trained, strategy, world, optimiser=ADAM),
        "activations of f": student.passes.saved * micro,
    }
    if language:
        parts["language model"] = itemsize * max(0.0, frozen) / (world if strategy.cuts_weights else 1)
        saved = language.saved(tokens, itemsize)
        if settings.activation_checkpointing:  # a layer's input each, and one layer at a time whole
            logits = 3 * FLOAT * tokens * language.vocabulary
            saved = logits + tokens * language.width * itemsize * language.layers + (saved - logits) / language.layers
        parts["activations of the language model"] = saved * micro
    if clip and settings.teacher == "live":
        parts["CLIP"] = float(FLOAT * clip.parameters)
    return parts


def _obstacles(config: Config, world: int, strategy: Strategy, whole: float, usable: float) -> list[str]:
    """`whole`: bytes of the language model before it is cut; `usable`: of a device's memory."""
    settings, found = config.pretrain, []
    if strategy.name == "zero3" and whole > usable:
        found.append(
            f"ZeRO-3 puts the whole language model ({whole / 2**30:.1f} GiB) on each device before it cuts it; use "
            "launch=launch/accelerate/fsdp2.yaml"
        )
    streams = settings.streams
    if world > streams:
        found.append(f"pretrain.streams={streams}: one or more for each of {world} ranks; use pretrain.streams={world}")
        streams = world
    if settings.workers > streams // world:
        found.append(
            f"pretrain.workers={settings.workers}: at most one a stream; use pretrain.workers={streams // world}, or "
            f"pretrain.streams={world * settings.workers}"
        )
    if settings.batch_size < streams * settings.accumulation:
        found.append(f"pretrain.batch_size={settings.batch_size}: {streams * settings.accumulation} or more are needed")
    return found


def _notes(config: Config, counts: Counts, images: int, tokens: float, world: int, waiting: float) -> list[str]:
    """`waiting`: bytes of the language model that a rank holds in the host's memory till they are cut."""
    notes, probe, streams = [], config.pretrain.probe, config.pretrain.streams
    shuffled = math.ceil(streams / world) * min(config.pretrain.shuffle_buffer, math.ceil(images / streams))
    memory = shuffled * (counts.image_bytes + RECORD)
    if memory > 2**30:
        notes.append(
            f"each rank also holds {memory / 2**30:.1f} GiB of the host's memory for pairs that it shuffles; "
            "pretrain.shuffle_buffer and pretrain.streams make it"
        )
    if waiting > 2**30:
        notes.append(
            f"each rank also holds {waiting / 2**30:.1f} GiB of the host's memory for the language model, "
            "until FSDP2 has cut it"
        )
    if config.pretrain.objective != "keyword":
        notes.append(f"{tokens:.0f} positions a text, padding included: an upper bound where answers are short")
    if world > 1 and probe.enabled:
        models = 2 * len(probe.fractions)
        notes.append(
            f"pretrain.probe trains {models} models of {probe.steps} steps on one rank, after the others ended"
        )
    return notes
