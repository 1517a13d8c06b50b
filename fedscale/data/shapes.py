"""The procedural set `shapes`: 32 × 32 images of ten shapes, each with three true texts.

What a classifier must see through: colour, texture and background of every kind, size, place, rotation, squeeze,
clutter, noise. Nothing but the outline says the class. Drawn as distance fields, so that edges are antialiased.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedscale.rng import numpy_generator

SIDE = 32  # pixels
CLASSES: tuple[str, ...] = (
    "circle", "square", "triangle", "star", "cross", "ring", "heart", "crescent", "arrow", "hexagon",
)  # fmt: skip

REASONS: dict[str, str] = {
    "circle": "its edge is round and has no corners",
    "square": "it has four equal sides and four right corners",
    "triangle": "it has three sides and three corners",
    "star": "it has five sharp points",
    "cross": "it has two bars that meet in the middle",
    "ring": "its edge is round and there is a hole in the middle",
    "heart": "it has two round bumps and one sharp point",
    "crescent": "it is round with a curved bite on one side",
    "arrow": "it has a sharp head on a straight bar",
    "hexagon": "it has six equal sides and six corners",
}

Colour = tuple[float, float, float]  # red, green, blue from 0 to 1
COLOURS: dict[str, Colour] = {
    "red": (0.95, 0.25, 0.20),
    "green": (0.30, 0.80, 0.30),
    "blue": (0.30, 0.50, 1.00),
    "yellow": (0.95, 0.90, 0.25),
    "purple": (0.75, 0.35, 0.95),
    "orange": (1.00, 0.60, 0.15),
    "white": (0.95, 0.95, 0.95),
    "black": (0.15, 0.15, 0.15),
}
FRONTS = ("red", "green", "blue", "yellow", "purple", "orange", "white")
BACKS = ("red", "green", "blue", "yellow", "purple", "orange", "black")
SHADE = 0.35  # of the colours behind a shape, so that most shapes are the brighter part
TEXTURES = ("solid", "striped", "dotted", "checkered")
BACKGROUNDS = ("plain", "striped", "dotted", "checkered")
MIX = (0.7, 0.1, 0.1, 0.1)  # of the textures and of the backgrounds
SIZES = ("small", "medium", "large")
RADII = ((8.0, 9.5), (10.0, 11.5), (12.0, 13.5))  # pixels, of the circle around the shape, one range a size

Array = np.ndarray


@dataclass(frozen=True)
class Shape:
    """One image, uint8 [32, 32, 3], with its class and its true text of each kind."""

    image: np.ndarray
    label: int
    texts: dict[str, str]


def render(seed: int, label: int, index: int) -> Shape:
    """Image `index` of class `label` in the stream `seed`: a pure function, and different seeds share no image."""
    rng = numpy_generator(seed, "shapes", label, index)
    name = CLASSES[label]
    front, back = FRONTS[rng.integers(len(FRONTS))], BACKS[rng.integers(len(BACKS))]
    texture, ground, size = rng.choice(4, p=MIX), rng.choice(4, p=MIX), rng.integers(3)
    image = draw(rng, name, RADII[size], COLOURS[front], COLOURS[back], int(texture), int(ground))
    words = (SIZES[size], front, TEXTURES[texture], name, back, BACKGROUNDS[ground])
    return Shape(image, label, texts(*words))


def draw(
    rng: np.random.Generator,
    name: str,
    radii: tuple[float, float],
    front: Colour,
    back: Colour,
    texture: int = 0,
    ground: int = 0,
) -> np.ndarray:
    """One shape of OUTLINES, uint8 [32, 32, 3]: its place, turn, tones, clutter and noise are drawn from `rng`."""
    canvas = _paint(rng, back, ground, contrast=0.15) * SHADE
    _clutter(rng, canvas)
    inside = _coverage(rng, OUTLINES[name], rng.uniform(*radii))
    canvas += inside[..., None] * (_paint(rng, front, texture, contrast=0.25) - canvas)
    canvas *= rng.uniform(0.75, 1.1)
    canvas += rng.normal(0, rng.uniform(0.01, 0.05), canvas.shape)
    return (np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8)


def texts(size: str, colour: str, texture: str, name: str, back: str, ground: str = "plain") -> dict[str, str]:
    """The true text of each kind; a plain background is the one that no word is spent on."""
    behind = f"{back} background" if ground == "plain" else f"{ground} {back} background"
    named = with_article(name)
    return {
        "description": f"{with_article(size)} {colour} {texture} {name} on {with_article(behind)}.",
        "conversation": f"{named}.",
        "reasoning": f"it is {named}, because {REASONS[name]}.",
    }


def with_article(words: str) -> str:
    """`a` or `an` in front of the words."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


_GRID = np.arange(SIDE, dtype=np.float32) + np.float32(0.5)
_X, _Y = np.broadcast_to(_GRID, (SIDE, SIDE)), np.broadcast_to(_GRID[:, None], (SIDE, SIDE))


def _coverage(rng: np.random.Generator, outline: Callable[[Array, Array], Array], radius: float) -> Array:
    """Share of each pixel inside the outline: moved, turned by up to 14°, squeezed by up to a sixth."""
    room = min(SIDE / 2 - radius, 2.5)
    centre_x, centre_y = SIDE / 2 + rng.uniform(-room, room, 2)
    angle = rng.uniform(-0.25, 0.25)
    cos, sin = np.float32(np.cos(angle) / radius), np.float32(np.sin(angle) / radius)
    squeeze_x, squeeze_y = rng.uniform(0.84, 1.0, 2)
    dx, dy = _X - np.float32(centre_x), _Y - np.float32(centre_y)
    x, y = (cos * dx + sin * dy) / np.float32(squeeze_x), (cos * dy - sin * dx) / np.float32(squeeze_y)
    return np.clip(np.float32(0.5) - outline(x, y) * np.float32(radius), 0, 1)


def _paint(rng: np.random.Generator, colour: Colour, texture: int, contrast: float) -> Array:
    """A whole canvas of the colour, float32 [32, 32, 3], with a shade of it as the texture's second tone."""
    base = np.asarray(colour, np.float32) + rng.normal(0, 0.05, 3).astype(np.float32)
    towards = np.float32(1.0 if base.mean() < 0.5 else 0.0)
    shade = base + np.float32(contrast * rng.uniform(0.8, 1.4)) * (towards - base)
    period, angle, phase = rng.uniform(3.5, 6.5), rng.uniform(0, np.pi), rng.uniform(0, 6.5, 2)
    if texture == 0:
        along = (_X * np.float32(np.cos(angle)) + _Y * np.float32(np.sin(angle))) / np.float32(SIDE * 1.5)
        tone = np.clip(along, 0, 1) * np.float32(rng.uniform(0, 0.5))
    else:
        cos, sin = np.float32(2 * np.pi / period * np.cos(angle)), np.float32(2 * np.pi / period * np.sin(angle))
        u = cos * _X + sin * _Y + np.float32(phase[0])
        wave = np.sin(u)
        if texture > 1:
            across = np.sin(cos * _Y - sin * _X + np.float32(phase[1]))
            wave = wave + across - np.float32(0.7) if texture == 2 else wave * across * np.float32(2)
        tone = np.clip(np.float32(0.5) + wave * np.float32(1.2), 0, 1)
    return base + tone[..., None] * (shade - base)


def _clutter(rng: np.random.Generator, canvas: Array) -> None:
    """Perhaps a stroke or spot behind the shape, in any colour, that says nothing about it."""
    palette = list(COLOURS.values())
    for _ in range(rng.integers(0, 2)):
        x, y = rng.uniform(0, SIDE, 2)
        angle, length, width = rng.uniform(0, np.pi), rng.uniform(0, 6), rng.uniform(0.7, 2.2)
        dx, dy = _X - np.float32(x), _Y - np.float32(y)
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        along = np.maximum(np.abs(cos * dx + sin * dy) - np.float32(length), 0)
        inside = np.clip(np.float32(width + 0.5) - np.hypot(along, cos * dy - sin * dx), 0, 1)
        colour = np.asarray(palette[rng.integers(len(palette))], np.float32)
        canvas += (np.float32(0.8) * inside)[..., None] * (SHADE * colour - canvas)


# Signed distances in units of the radius, negative inside, y downwards.


def _disc(x: Array, y: Array, radius: float) -> Array:
    return np.hypot(x, y) - np.float32(radius)


def _box(x: Array, y: Array, half_width: float, half_height: float) -> Array:
    return np.maximum(np.abs(x) - np.float32(half_width), np.abs(y) - np.float32(half_height))


def _polygon(x: Array, y: Array, sides: int, apothem: float, turn: float) -> Array:
    angles = turn + 2 * np.pi * np.arange(sides) / sides
    faces = [np.float32(np.cos(a)) * x + np.float32(np.sin(a)) * y for a in angles]
    return np.maximum.reduce(faces) - np.float32(apothem)


def _star(x: Array, y: Array) -> Array:
    sector = 2 * np.pi / 5
    angle = np.abs((np.arctan2(x, -y) + sector / 2) % sector - sector / 2)
    radius = np.hypot(x, y)
    # The edge runs from the point (radius 1, angle 0) to the notch (radius 0.42, half a sector away).
    tip, notch = np.array([1.0, 0.0]), 0.42 * np.array([np.cos(sector / 2), np.sin(sector / 2)])
    normal = np.array([(notch - tip)[1], -(notch - tip)[0]]) / np.linalg.norm(notch - tip)
    px, py = radius * np.cos(angle), radius * np.sin(angle)
    return np.float32(normal[0]) * (px - np.float32(1.0)) + np.float32(normal[1]) * py


def _heart(x: Array, y: Array) -> Array:
    half = np.float32(2**-0.5)
    u, v = half * (x + y - np.float32(0.1)), half * (y - np.float32(0.1) - x)
    lobes = np.minimum(_disc(u, v + np.float32(0.5), 0.5), _disc(u + np.float32(0.5), v, 0.5))
    return np.minimum(_box(u, v, 0.5, 0.5), lobes)


def _crescent(x: Array, y: Array) -> Array:
    return np.maximum(_disc(x, y, 0.95), -_disc(x - np.float32(0.42), y, 0.78))


def _cross(x: Array, y: Array) -> Array:
    return np.minimum(_box(x, y, 0.27, 0.95), _box(x, y, 0.95, 0.27))


def _arrow(x: Array, y: Array) -> Array:
    head = _polygon(x - np.float32(0.30), y, 3, 0.36, np.pi / 3)
    return np.minimum(head, _box(x + np.float32(0.45), y, 0.5, 0.2))


OUTLINES: dict[str, Callable[[Array, Array], Array]] = {
    "circle": lambda x, y: _disc(x, y, 0.9),
    "square": lambda x, y: _box(x, y, 0.76, 0.76),
    "triangle": lambda x, y: _polygon(x, y - np.float32(0.2), 3, 0.55, np.pi / 2),
    "star": _star,
    "cross": _cross,
    "ring": lambda x, y: np.abs(_disc(x, y, 0.7)) - np.float32(0.22),
    "heart": _heart,
    "crescent": _crescent,
    "arrow": _arrow,
    "hexagon": lambda x, y: _polygon(x, y, 6, 0.82, np.pi / 6),
}
