"""Single images: decoding what may be broken, encoding, and fitting to a square."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Protocol, TypeVar

import numpy as np
from PIL import Image


class Encoded(Protocol):
    """Anything that holds an encoded image."""

    @property
    def image(self) -> bytes: ...


T = TypeVar("T", bound=Encoded)
R = TypeVar("R")

MAX_PIXELS = 2**26  # a larger header is a decode bomb, not a photograph
CHUNK = 256  # images in flight at once
SMALL = 2**14  # bytes, below which an image decodes sooner than threads hand it over (measured at 1 to 3 KB)


class CorruptImage(Exception):
    """An image that cannot be decoded; its text is the reason."""


def decode(data: bytes) -> Image.Image:
    """The image, fully decoded. Raises CorruptImage with the decoder's reason."""
    try:
        image = Image.open(io.BytesIO(data))
        if image.width * image.height > MAX_PIXELS:
            raise CorruptImage(f"{image.width}x{image.height} pixels, more than {MAX_PIXELS:,}")
        image.load()
    except Image.UnidentifiedImageError:
        raise CorruptImage(f"not an image ({len(data)} bytes)") from None
    except (OSError, SyntaxError, ValueError, LookupError, TypeError, EOFError, struct.error, zlib.error) as error:
        raise CorruptImage(" ".join(str(error).split()) or type(error).__name__) from None
    except Image.DecompressionBombError as error:
        raise CorruptImage(str(error)) from None
    return image


def fit_square(image: Image.Image, size: int) -> np.ndarray:
    """uint8 [size, size, 3] RGB: the shorter side resized to `size` (bicubic), then the centre cut out."""
    image = image.convert("RGB")
    if image.size != (size, size):
        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    return np.asarray(image)


def encode_png(image: Image.Image | np.ndarray) -> bytes:
    """A lossless PNG of an RGB image or a uint8 [H, W, 3] array: equal pixels, equal bytes."""
    buffer = io.BytesIO()
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image.convert("RGB")
    picture.save(buffer, format="PNG", compress_level=3)  # as small as 6 on 32 × 32, and a fifth faster
    return buffer.getvalue()


def threaded(function: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[T, R]]:
    """Pairs (item, function(item)) in order, a bounded number ahead, large images by threads (Pillow frees the GIL)."""
    items = iter(items)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        while chunk := list(islice(items, CHUNK)):
            small = sum(len(item.image) for item in chunk) < SMALL * len(chunk)
            yield from zip(chunk, map(function, chunk) if small else pool.map(function, chunk), strict=True)
