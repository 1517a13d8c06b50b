"""The frozen CLIP teacher g, through open_clip: any of its names, `hf-hub:…`, or a local folder in its own layout."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedscale.config.schema import ClipConfig
from fedscale.models.hub import explained, local_folder, offline_where_unreachable

KEY = "teachers.clip.model"
MARKER = "open_clip_config.json"


class ClipTeacher:
    """A frozen CLIP. All embeddings are float32, of length 1, without gradients.

    `logit_scale` is the one that it was trained with: 100 in the published weights, which are clamped there, and what
    a smaller training has come to elsewhere.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, device: torch.device) -> None:
        self.model = model.eval().requires_grad_(False).to(device)
        self.tokenizer = tokenizer
        self.device = device
        settings: dict[str, Any] = model.visual.preprocess_cfg  # type: ignore[union-attr,assignment]
        size = settings["size"]
        self._size = (size, size) if isinstance(size, int) else (size[0], size[1])
        self._squash = settings.get("resize_mode") == "squash"
        self._interpolation = "bilinear" if settings.get("interpolation") == "bilinear" else "bicubic"
        self._mean = torch.tensor(settings["mean"], device=device).view(3, 1, 1)
        self._std = torch.tensor(settings["std"], device=device).view(3, 1, 1)
        self.embed_dim = self.encode_texts(["a"]).shape[1]
        self.logit_scale = float(model.logit_scale.exp())  # type: ignore[operator]

    @torch.inference_mode()
    def encode_images(self, images: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] to [B, embed_dim]."""
        return F.normalize(self.model.encode_image(self.preprocess(images)).float(), dim=-1)  # type: ignore[operator]

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """T texts to [T, embed_dim]."""
        tokens = self.tokenizer(list(texts)).to(self.device)
        return F.normalize(self.model.encode_text(tokens).float(), dim=-1)  # type: ignore[operator]

    def encode_classes(self, class_names: Sequence[str], prompt: str) -> Tensor:
        """The embedding of `prompt`, its `{}` replaced by the name, for each class: [C, embed_dim]."""
        return self.encode_texts([prompt.replace("{}", name.replace("_", " ")) for name in class_names])

    def class_logits(self, images: Tensor, classes: Tensor, logit_scale: float = 0.0) -> Tensor:
        """logit_scale (0 = its own) · cosine of each image with each of `classes` [C, embed_dim]: [B, C]."""
        return (logit_scale or self.logit_scale) * self.encode_images(images) @ classes.T

    def preprocess(self, images: Tensor) -> Tensor:
        """The model's own preprocessing as tensor code: resize (antialiased), centre crop, normalise; [B, 3, h, w]."""
        pixels = images.to(self.device).permute(0, 3, 1, 2).float() / 255
        height, width = pixels.shape[2:]
        if self._squash:
            resized = self._size
        else:  # `shortest`; `longest` is the same on the square images that this project holds
            # The longer side is cut off to whole pixels, as torchvision's Resize does.
            across = self._size[0] * width <= self._size[1] * height  # the width decides
            wanted, short = (self._size[1], width) if across else (self._size[0], height)
            resized = (wanted * height // short, wanted * width // short)
        if resized != (height, width):
            pixels = F.interpolate(pixels, resized, mode=self._interpolation, antialias=True, align_corners=False)
            pixels = pixels.clamp(0, 1)  # bicubic overshoots, and PIL's, which the weights were trained with, clips
        top, left = (round((have - want) / 2) for have, want in zip(resized, self._size, strict=True))
        pixels = pixels[:, :, top : top + self._size[0], left : left + self._size[1]]
        return (pixels - self._mean) / self._std


def load_clip(config: ClipConfig, device: torch.device | str = "cpu") -> ClipTeacher:
    """The CLIP of the config. Raises UserError, with the remedies, when its weights can be had nowhere."""
    import open_clip

    folder = None if ":" in config.model else local_folder(config.model, MARKER, KEY)
    name = f"local-dir:{folder}" if folder else config.model
    pretrained = None if ":" in name else config.pretrained
    with explained(KEY, config.model), quiet(), nullcontext() if folder else offline_where_unreachable():
        model = open_clip.create_model(name, pretrained=pretrained, require_pretrained=True, device="cpu")
        tokenizer = open_clip.get_tokenizer(name)
    return ClipTeacher(model, tokenizer, torch.device(device))


class quiet:
    """open_clip logs to the root logger, which sets a handler up for the whole process; silence it while it loads."""

    def __enter__(self) -> None:
        self._before = logging.root.manager.disable
        logging.disable(logging.ERROR)  # what is an error is raised too, and explained

    def __exit__(self, *error: object) -> None:
        logging.disable(self._before)
