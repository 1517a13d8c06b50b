import io
import struct
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from fedscale.data import images
from fedscale.data.images import CorruptImage, TooLarge, decode, threaded

from .conftest import picture


def bomb(side: int) -> bytes:
    """A PNG of some bytes whose header says `side` × `side` pixels; not one of them is there."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = b"IDAT" + b"no pixels"
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, pixels)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_every_ordinary_format_decodes(form: str) -> None:
    image = decode(picture(1, (20, 10), form))
    assert (image.format, image.size) == (form, (20, 10))


@pytest.mark.parametrize(
    "data", [b"", b"no image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", picture(1)[:500]]
)
def test_what_is_no_whole_image_says_why(data: bytes) -> None:
    with pytest.raises(CorruptImage, match=r"(?i)not an image|truncated") as caught:
        decode(data)
    assert not isinstance(caught.value, TooLarge)


def test_a_header_of_too_many_pixels_is_refused_before_any_is_decoded() -> None:
    with pytest.raises(TooLarge, match="9000x9000 pixels, more than 67,108,864"):
        decode(bomb(9000))
    with pytest.raises(TooLarge, match="exceeds limit"):  # Pillow's own limit, far above ours
        decode(bomb(60_000))
    with pytest.raises(CorruptImage) as caught:  # of a permitted size: only now is the missing data noticed
        decode(bomb(100))
    assert not isinstance(caught.value, TooLarge)


def test_the_limit_of_pixels_is_the_callers() -> None:
    data = picture(1, (20, 10))
    assert decode(data, max_pixels=200).size == (20, 10)
    with pytest.raises(TooLarge, match="20x10 pixels, more than 199"):
        decode(data, max_pixels=199)


def test_a_thumbnail_of_a_jpeg_is_decoded_small_but_not_too_small() -> None:
    photo = Image.fromarray(np.random.default_rng(1).integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((800, 600))
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG")
    small = decode(buffer.getvalue(), at_least=100)
    assert small.size == (200, 150)
    assert np.abs(np.asarray(small, float) - np.asarray(photo.resize((200, 150)), float)).mean() < 4
    assert decode(buffer.getvalue(), at_least=601).size == (800, 600)
    assert decode(picture(1, (800, 600), "PNG"), at_least=100).size == (800, 600)
    with pytest.raises(TooLarge):
        decode(buffer.getvalue(), max_pixels=200 * 150, at_least=100)  # the header's size counts


@dataclass(frozen=True)
class Encoded:
    number: int
    image: bytes


def _counted(sizes: list[int], drawn: list[int]) -> Iterator[Encoded]:
    for number, size in enumerate(sizes):
        drawn.append(number)
        yield Encoded(number, bytes(size))


@pytest.mark.parametrize("threads", [None, 1, 3])
@pytest.mark.parametrize("size", [10, images.SMALL])
def test_threads_keep_the_order_and_draw_a_bounded_number_ahead(
    threads: int | None, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "CHUNK", 7)
    drawn: list[int] = []
    pairs = threaded(lambda item: item.number**2, _counted([size] * 30, drawn), threads)
    ahead = []
    for expected, (item, result) in enumerate(pairs):
        assert (item.number, result) == (expected, expected**2)
        ahead.append(len(drawn) - expected)
    assert len(ahead) == 30
    assert max(ahead) == 7


def test_large_images_are_held_by_bytes_not_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "CHUNK_BYTES", 100)
    drawn: list[int] = []
    ahead = [len(drawn) - n for n, _ in enumerate(threaded(lambda item: None, _counted([40] * 20, drawn)))]
    assert len(ahead) == 20
    assert max(ahead) == 3


def test_one_thread_works_in_the_callers_own() -> None:
    def where(item: Encoded) -> int:
        return threading.get_ident()

    large = [Encoded(0, bytes(images.SMALL))] * 4
    assert {ident for _, ident in threaded(where, large, threads=1)} == {threading.get_ident()}
    assert threading.get_ident() not in {ident for _, ident in threaded(where, large, threads=2)}
