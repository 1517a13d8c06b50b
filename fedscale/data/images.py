"""Single images: decoding what may be broken, encoding, and fitting to a square."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import numpy as np
from PIL import Image


class Encoded(Protocol):
    """Anything that holds an encoded image."""

    @property
    def image(self) -> bytes: ...


T = TypeVar("T", bound=Encoded)
R = TypeVar("R")

# What crawls and data sets hold. A list, because Pillow would hand a picture that is PostScript to Ghostscript.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF")
MAX_PIXELS = 2**26  # a larger header is a decode bomb, not a photograph
CHUNK = 256  # images in flight at once, …
CHUNK_BYTES = 2**26  # … or as many as have so many encoded bytes
SMALL = 2**14  # bytes, below which an image decodes sooner than threads hand it over (measured at 1 to 3 KB)


class CorruptImage(Exception):
    """An image that cannot be decoded; its text is the reason."""


class TooLarge(CorruptImage):
    """An image whose header promises more pixels than are wanted; none of them was decoded."""


def decode(data: bytes, max_pixels: int = MAX_PIXELS, at_least: int | None = None) -> Image.Image:
    """The image, fully decoded. Raises CorruptImage with the decoder's reason, TooLarge above `max_pixels`.

    With `at_least`, a JPEG may come 2, 4 or 8 times smaller in both sides, neither below `at_least` pixels: half the
    time for a photograph of which a thumbnail is wanted, but not the same pixels as decoding and resizing.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > max_pixels:
            raise TooLarge(f"{image.width}x{image.height} pixels, more than {max_pixels:,}")
        if at_least is not None:
            image.draft(None, (at_least, at_least))
        image.load()
    except Image.UnidentifiedImageError:
        raise CorruptImage(f"not an image ({len(data)} bytes)") from None
    except (OSError, SyntaxError, ValueError, LookupError, TypeError, EOFError, struct.error, zlib.error) as error:
        raise CorruptImage(" ".join(str(error).split()) or type(error).__name__) from None
    except Image.DecompressionBombError as error:  # Pillow's own limit, 179 million
        raise TooLarge(str(error)) from None
    return image


def pixels_of(data: bytes) -> int:
    """Width × height by the header alone; 0 for what has none."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.width * image.height
    except Exception:  # whatever a decoder makes of rubbish: `decode` tells what is wrong with it
        return 0


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


def threaded(function: Callable[[T], R], items: Iterable[T], threads: int | None = None) -> Iterator[tuple[T, R]]:
    """Pairs (item, function(item)) in order, a bounded number ahead, large images by threads (Pillow frees the GIL).

    `threads`: how many, none = one a core and at most 8. At most `CHUNK` items or `CHUNK_BYTES` of them are held.
    """
    threads = min(8, os.cpu_count() or 1) if threads is None else threads
    with ThreadPoolExecutor(threads) as pool:  # starts none before it is given work
        for chunk in _chunks(items):
            small = sum(len(item.image) for item in chunk) < SMALL * len(chunk)
            results = map(function, chunk) if small or threads == 1 else pool.map(function, chunk)
            yield from zip(chunk, results, strict=True)


def _chunks(items: Iterable[T]) -> Iterator[list[T]]:
    chunk: list[T] = []
    held = 0
    for item in items:
        chunk.append(item)
        held += len(item.image)
        if len(chunk) == CHUNK or held >= CHUNK_BYTES:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk
