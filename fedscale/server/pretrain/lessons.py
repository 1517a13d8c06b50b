"""What f learns of a step's images, `pretrain.objective`: a module with its loss, and what goes into it beside them.

`distillation` is the method; `keyword` is its control row: the same images, steps and augmentation, no teacher.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedscale.config.schema import Config
from fedscale.distributed.mesh import Mesh
from fedscale.distributed.strategy import asked_strategy
from fedscale.errors import UserError
from fedscale.models import Classifier
from fedscale.models.clip import load_clip
from fedscale.models.language import LanguageSide, load_language_side
from fedscale.rng import derive
from fedscale.server.caption.prompts import of_kind
from fedscale.server.pretrain.batch import Batch
from fedscale.server.pretrain.data import PairStream
from fedscale.server.pretrain.schedule import alpha_at
from fedscale.server.pretrain.stopwatch import Stopwatch
from fedscale.server.pretrain.task import Distillation, Whole
from fedscale.server.pretrain.text import IGNORED, TextEncoder, Tokens

Counted = Callable[[int], int]  # a rank's count to the sum over all ranks


class Lesson(Protocol):
    """One objective. `module` holds all that is trained; its losses are addends, as `Distillation.forward` says."""

    module: nn.Module

    def begin(self, parts: Sequence[Batch], step: int, steps: int, counted: Counted) -> dict[str, float]:
        """Read the step's micro batches; what its metrics row tells of the schedule."""

    def beside(self, number: int, part: Batch, images: Tensor, watch: Stopwatch) -> tuple[Any, ...]:
        """What the module takes behind the augmented images of part `number`; `images` are uint8 [B, S, S, 3]."""


def lesson_of(config: Config, student: Classifier, pairs: PairStream, mesh: Mesh) -> Lesson:
    """The lesson that the config asks for. Raises UserError where a teacher cannot be loaded."""
    if config.pretrain.objective == "keyword":
        return KeywordLesson(config, student)
    return DistillationLesson(config, student, pairs, mesh)


class DistillationLesson:
    """Dynamic Weighted Distillation (`task`), with the teachers that it needs."""

    def __init__(self, config: Config, student: Classifier, pairs: PairStream, mesh: Mesh) -> None:
        settings = config.pretrain
        if settings.contrastive_weight > 0 and "description" not in config.caption.kinds:
            raise UserError("pretrain.contrastive_weight is above 0: caption.kinds must hold description")
        self._settings = settings
        self._clip = load_clip(config.teachers.clip, mesh.device) if settings.teacher == "live" else None
        # FSDP2 moves a block at a time to the device and keeps this rank's part: the whole need not fit there.
        held = "cpu" if asked_strategy(os.environ) == "fsdp2" else mesh.device
        language = load_language_side(config, mesh.device, held)
        self._encoder = _encoder(config, language)
        torch.manual_seed(derive(config.seed, "pretrain heads"))
        embed_dim = self._clip.embed_dim if self._clip else pairs.embed_dim()
        self.module: nn.Module = Distillation(student, language.model, embed_dim, settings)

    def begin(self, parts: Sequence[Batch], step: int, steps: int, counted: Counted) -> dict[str, float]:
        self._alpha = alpha_at(step, steps, self._settings.alpha)
        self._tokens = [self._encoder.encode(part.dialogues) for part in parts]
        answers = sum(int((text.labels != IGNORED).sum()) for text in self._tokens)
        self._whole = Whole(self._settings.batch_size, counted(answers))
        return {"alpha": self._alpha}

    def beside(self, number: int, part: Batch, images: Tensor, watch: Stopwatch) -> tuple[Any, ...]:
        with watch.teaching():
            seen, read = self._taught(images, part)
        tokens = self._tokens[number]
        tokens = Tokens(tokens.ids.to(images.device), tokens.labels.to(images.device))
        return seen, tokens, self._alpha, self._whole, read

    def _taught(self, images: Tensor, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """The teacher's embeddings of the images and, where the contrastive loss asks for them, of the descriptions."""
        contrastive = self._settings.contrastive_weight > 0
        if self._clip is None:
            assert batch.seen is not None and batch.read is not None, "the stream gives what the store holds"
            return batch.seen.to(images.device), batch.read.to(images.device) if contrastive else None
        # Cloned, because the teacher gives inference tensors, of which autograd may save none.
        read = self._clip.encode_texts(batch.descriptions).clone() if contrastive else None
        return self._clip.encode_images(images).clone(), read


class KeywordLesson:
    """f and its classifier, by cross-entropy to the class that the crawl's keyword names."""

    def __init__(self, config: Config, student: Classifier) -> None:
        self._images = config.pretrain.batch_size
        self.module: nn.Module = KeywordTask(student)

    def begin(self, parts: Sequence[Batch], step: int, steps: int, counted: Counted) -> dict[str, float]:
        return {}

    def beside(self, number: int, part: Batch, images: Tensor, watch: Stopwatch) -> tuple[Any, ...]:
        assert part.labels is not None, "the stream gives labels where the objective is keyword"
        return part.labels.to(images.device), self._images


class KeywordTask(nn.Module):
    """f as a classifier."""

    def __init__(self, student: Classifier) -> None:
        super().__init__()
        self.student = student

    def forward(self, images: Tensor, labels: Tensor, whole: int) -> dict[str, Tensor]:
        """This part's addend to the mean cross-entropy over the step's `whole` images; images [B, 3, H, W]."""
        logits = self.student(images.to(next(self.student.parameters()).dtype))  # DeepSpeed's bf16 casts no inputs
        return {"loss": F.cross_entropy(logits.float(), labels, reduction="sum") / whole}


def _encoder(config: Config, language: LanguageSide) -> TextEncoder:
    """What writes prompts in the language model's chat form. Raises UserError for a question that fills the room."""
    encoder = TextEncoder(language.tokenizer, language.chat_form, config.pretrain.max_text_tokens)
    encoder.check(turns[0] for kind in config.caption.kinds for turns in of_kind(config.caption.prompts, kind))
    return encoder
