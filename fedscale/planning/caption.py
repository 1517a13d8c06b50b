"""Stage 1a: the tower once an image, prompts read, answers written token by token, on workers that share nothing."""

from __future__ import annotations

import math

from fedscale.config.schema import Config
from fedscale.planning.cluster import Cluster
from fedscale.planning.counts import RECORD, Counts
from fedscale.planning.teachers import Clip, MllmShape, words_of
from fedscale.planning.work import StageWork, Work
from fedscale.server.caption.prompts import of_kind

SLOT_USE = 0.94  # of the slots that generate (README, Measured)
ROW_BYTES, TOKEN_BYTES = 420, 4.5  # of a row without its texts, and of a token's letters
MARKER_BYTES = 900
VLLM_SHARE = 0.9


def captioned(config: Config, counts: Counts) -> int:
    """Images that are captioned: whole shards until there are `caption.max_images`."""
    most = config.caption.max_images
    return min(counts.pool, -(-most // counts.pool_shard) * counts.pool_shard) if most else counts.pool


def caption_work(
    config: Config,
    counts: Counts,
    cluster: Cluster,
    mllm: MllmShape | None,
    clip: Clip | None,
    answer_tokens: int,
) -> StageWork:
    """The stage. `mllm` where the engine runs one here, `clip` where its embeddings are stored."""
    settings, images = config.caption, captioned(config, counts)
    shards = math.ceil(images / counts.pool_shard)
    tensor = settings.vllm.tensor_parallel_size if settings.engine == "vllm" else 1
    workers = max(1, cluster.world // tensor)
    busiest = min(images, math.ceil(shards / workers) * counts.pool_shard)  # images of the worker with most shards
    asked, again, texts = _tokens(config, answer_tokens)
    half = "fp32" if cluster.node.is_cpu else "bf16"
    work = Work(
        {
            "image": float(busiest),
            "pixel": busiest * counts.image_pixels,
            # A node's workers read through one network.
            "read": busiest * (counts.image_bytes + RECORD) * min(workers, cluster.per_node),
            "write": busiest * (ROW_BYTES + TOKEN_BYTES * texts * answer_tokens),
            "start": 1,
        }
    )
    memory: dict[str, float] = {}
    if mllm:
        work += _generated(config, mllm, busiest, (asked, again, texts, float(answer_tokens)), half) * (1 / tensor)
        memory = _memory(config, mllm, (asked + again) / texts + answer_tokens, half, tensor)
    if clip:
        views = settings.features.views
        work += clip.image.once(busiest * views, "fp32") + clip.text.once(busiest, "fp32")
        memory["CLIP"] = 4.0 * clip.parameters
    device = work.only(tuple(kind for kind in work.amounts if kind not in ("read", "write", "start")))
    work += device * (cluster.stretch - 1) + Work({"crowd": work.flops * cluster.stretch * cluster.crowding})
    storage = {
        "pool shards": counts.pool * (counts.image_bytes + RECORD),
        "captions": images * (ROW_BYTES + TOKEN_BYTES * texts * answer_tokens) + shards * MARKER_BYTES,
    }
    if clip:
        storage["embeddings"] = images * (settings.features.views + 1) * clip.width * 2.0
    return StageWork(
        "caption",
        work,
        workers,
        1 - images / max(1, busiest * workers),
        f"{shards:,} shards for {workers} workers: smaller shards (data.samples_per_shard), or {shards} workers",
        {
            "images": float(images),
            "shards": float(shards),
            "texts": images * texts,
            "tokens": images * texts * answer_tokens,
        },
        memory,
        "fewer caption.batch_size slots, or caption.engine=vllm with caption.vllm.tensor_parallel_size=2",
        storage,
        [],
        _notes(config, answer_tokens, texts),
        predictable=settings.engine != "openai",
    )


def texts_of(config: Config) -> float:
    """Texts an image on average: a conversation has one a turn."""
    return _tokens(config, 0)[2]


def _tokens(config: Config, answer: int) -> tuple[float, float, float]:
    """An image's prompt tokens behind the shared beginning, tokens of history read again, texts; all kinds together."""
    asked = again = texts = 0.0
    for kind in config.caption.kinds:
        offered = of_kind(config.caption.prompts, kind)
        turns = sum(map(len, offered)) / len(offered)
        words = words_of([question for one in offered for question in one])
        texts += turns
        asked += turns * words
        again += (turns - 1) * turns / 2 * (words + answer)
    return asked, again, texts


def _generated(
    config: Config, mllm: MllmShape, images: float, tokens: tuple[float, float, float, float], half: str
) -> Work:
    """The tower, the prompts' prefill, and the decoding in slots, of so many images.

    `tokens`: an image's questions, what of a conversation is read again, texts, and an answer's length.
    """
    asked, again, texts, answer = tokens
    language, itemsize = mllm.language, 4 if half == "fp32" else 2
    context = mllm.image_tokens + (asked + again) / texts
    prefill = language.flops(mllm.image_tokens) + language.flops(asked + again, mllm.image_tokens)
    decode = texts * language.flops(answer, context)
    slots = config.caption.batch_size
    steps = images * texts * answer / (slots * SLOT_USE)
    moved = itemsize * language.parameters + slots * (context + answer / 2) * language.kv_bytes(itemsize)
    calls = language.calls * (steps + images * texts / slots) + mllm.image.calls * images / slots
    found = mllm.image.once(images, half, itemsize)
    return found + Work({f"matmul.{half}": images * (prefill + decode), "traffic": moved * steps, "call": calls})


def _memory(config: Config, mllm: MllmShape, tokens: float, half: str, tensor: int) -> dict[str, float]:
    itemsize, slots = 4 if half == "fp32" else 2, config.caption.batch_size
    context = mllm.image_tokens + tokens
    return {
        "MLLM": float(itemsize * mllm.parameters) / tensor,
        "keys and values": slots * context * mllm.language.kv_bytes(itemsize) / tensor,
        "tower and prefill": slots * mllm.image.outputs / max(1, mllm.image.calls) * 8 * itemsize,
    }


def _notes(config: Config, answer: int, texts: float) -> list[str]:
    if config.caption.engine == "openai":
        return [f"the endpoint's time is not known here: {texts:.1f} requests an image"]
    if config.caption.engine == "template":
        return []
    return [f"{answer} tokens a text, caption.max_new_tokens where --answer-tokens says nothing: then an upper bound"]
