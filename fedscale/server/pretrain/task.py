"""Dynamic Weighted Distillation: f beside the frozen CLIP, in front of a language model (METHOD.md, stage 1.2).

One module holds everything that is trained, so that one `prepare` covers it (PITFALLS D 32, 48). The CLIP teacher is
not in it: its features come in as an input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedscale.config.schema import PretrainConfig
from fedscale.distributed.rows import gather_rows
from fedscale.models import Classifier
from fedscale.models.projector import Projector
from fedscale.server.pretrain.text import IGNORED, Tokens

MAX_LOGIT_SCALE = math.log(100)  # of the contrastive loss, as CLIP's


@dataclass(frozen=True)
class Whole:
    """What the whole step holds, over ranks and accumulated backward passes: the loss is a mean over it.

    A mean of the parts' means would weigh an answer token by how many others are in its part (off by 2e-2).
    """

    images: int
    answer_tokens: int


class Distillation(nn.Module):
    """f, the projectors P_f and P_g, the language model, and the contrastive head where it has a weight.

    `language_model` (causal) takes `inputs_embeds` and gives `.logits`; `teacher_dim` is the width of CLIP's
    embeddings, of images and of texts.
    """

    def __init__(self, student: Classifier, language_model: Any, teacher_dim: int, config: PretrainConfig) -> None:
        super().__init__()
        self.student = student
        # The classifier has no part in this stage and leaves it as it was initialised.
        self.student.classifier.requires_grad_(False)
        self.language_model = _adapted(language_model, config)
        self.embed = self.language_model.get_input_embeddings()
        width = self.embed.weight.shape[1]
        self.student_projector = Projector(student.feature_dim, config.visual_tokens, width)
        self.teacher_projector = Projector(teacher_dim, config.visual_tokens, width)
        if config.contrastive_weight > 0:
            self.text_projection = nn.Linear(student.feature_dim, teacher_dim)
            self.logit_scale = nn.Parameter(torch.tensor([math.log(1 / 0.07)]))  # [1]: FSDP2 refuses 0-D parameters
        self._config = config

    def train(self, mode: bool = True) -> Distillation:
        """As usual, but a frozen language model stays in evaluation mode."""
        super().train(mode)
        if self._config.language_model == "frozen":
            self.language_model.eval()
            for module in self.language_model.modules():  # transformers checkpoints in training mode alone
                module.training = mode and bool(getattr(module, "gradient_checkpointing", False))
        return self

    def forward(
        self,
        images: Tensor,
        teacher_features: Tensor,
        tokens: Tokens,
        alpha: float,
        whole: Whole,
        description_features: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The losses, each a scalar: `lm`, `feature`, perhaps `contrastive`, and their weighted sum `loss`.

        Each is this part's addend: their sums over ranks and accumulated backward passes are the step's mean losses.
        `images` [B, 3, H, W] for f; `teacher_features` [B, E] of CLIP's image tower, `description_features` [B, E] of
        its text tower; `alpha` is α(t). The contrastive loss is over the images of one backward pass, all ranks'.
        """
        dtype = next(self.student.parameters()).dtype  # DeepSpeed's bf16 has bf16 weights, and casts no inputs
        features = self.student.features(images.to(dtype))
        h_f = self.student_projector(features)
        h_g = self.teacher_projector(teacher_features.to(features.dtype))
        apart = 1 - F.cosine_similarity(h_f.float(), h_g.detach().float(), dim=-1)  # [B, tokens]
        losses = {
            "lm": self._answer_loss(alpha * h_f + (1 - alpha) * h_g, tokens) / whole.answer_tokens,
            "feature": apart.mean(-1).sum() / whole.images,
        }
        total = losses["lm"] + self._config.feature_weight * losses["feature"]
        if self._config.contrastive_weight > 0:
            assert description_features is not None, "the contrastive loss needs the descriptions' features"
            projected = self.text_projection(features)
            losses["contrastive"] = contrastive_loss(projected, description_features, self.logit_scale) / whole.images
            total = total + self._config.contrastive_weight * losses["contrastive"]
        return {**losses, "loss": total}

    def _answer_loss(self, visual: Tensor, tokens: Tokens) -> Tensor:
        """Next-token loss with the visual tokens [B, V, D] in front: the sum over all answer tokens of the batch."""
        text = self.embed(tokens.ids)
        inputs = torch.cat([visual.to(text.dtype), text], dim=1)
        # No attention mask: the padding is on the right, where a causal model does not look.
        logits = self.language_model(inputs_embeds=inputs, use_cache=False).logits
        # The position before a token predicts it; the last visual token predicts the first text token.
        predicting = logits[:, visual.shape[1] - 1 : -1]
        answer = tokens.labels != IGNORED
        return F.cross_entropy(predicting[answer].float(), tokens.labels[answer], reduction="sum")


def contrastive_loss(images: Tensor, texts: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric InfoNCE between image and text embeddings, [B, E] each, summed over B; `logit_scale` [1] is its log.

    Every rank contrasts its own pairs with those of all ranks, so that no rank holds more than [B, all] logits.
    """
    scale = logit_scale.float().clamp(max=MAX_LOGIT_SCALE).exp()
    images, texts = F.normalize(images.float(), dim=-1), F.normalize(texts.float(), dim=-1)
    all_images, first = gather_rows(images)
    all_texts, _ = gather_rows(texts)
    pairs = torch.arange(first, first + len(images), device=images.device)
    of_images = F.cross_entropy(scale * images @ all_texts.T, pairs, reduction="sum")
    return (of_images + F.cross_entropy(scale * texts @ all_images.T, pairs, reduction="sum")) / 2


def _adapted(language_model: Any, config: PretrainConfig) -> Any:
    """The language model as `pretrain.language_model` wants it trained: not at all, by low-rank adapters, or whole.

    What is trained is float32 (peft's adapters too): in bf16 a step of AdamW would leave most weights unmoved, and
    FSDP2 and ZeRO-3 refuse it beside a float32 student. `mixed_precision` makes the cast for computing.
    """
    language_model.requires_grad_(config.language_model == "full")
    if config.language_model == "full":
        language_model.float()
    if config.activation_checkpointing:
        language_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if config.language_model != "lora":
        return language_model
    from peft import LoraConfig, get_peft_model

    adapters = LoraConfig(
        r=config.lora.rank,
        lora_alpha=config.lora.scale,
        lora_dropout=config.lora.dropout,
        target_modules="all-linear",
    )
    return get_peft_model(language_model, adapters)
