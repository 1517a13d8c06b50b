"""Images on their way out of the process: a Pillow image for vLLM, a data URL for an HTTP endpoint."""

from __future__ import annotations

import base64
import io

import torch
from PIL import Image
from torch import Tensor

from fedscale.data.images import encode_png

LOSSLESS_PIXELS = 512 * 512  # up to here a PNG, which is exact; above a JPEG, of a quarter of the bytes
JPEG_QUALITY = 95


class BadImage(Exception):
    """A tensor that is no image; its text is the reason."""


def picture(image: Tensor) -> Image.Image:
    """The Pillow image of uint8 [H, W, 3] RGB. Raises BadImage for any other tensor, and for one without pixels."""
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[-1] != 3 or not image.numel():
        kind = f"{image.dtype} {list(image.shape)}".removeprefix("torch.")
        raise BadImage(f"an image of {kind}: expected uint8 [H, W, 3] with pixels")
    return Image.fromarray(image.cpu().numpy())


def data_url(image: Tensor) -> str:
    """The image as a `data:` URL: PNG up to LOSSLESS_PIXELS, above JPEG with its colours at full resolution.

    Raises BadImage.
    """
    shown = picture(image)
    if shown.width * shown.height <= LOSSLESS_PIXELS:
        kind, data = "png", encode_png(shown)
    else:
        buffer = io.BytesIO()
        shown.save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
        kind, data = "jpeg", buffer.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
