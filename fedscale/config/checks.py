"""How a setting out of range is refused, and the kinds of text that several settings name."""

from __future__ import annotations

from fedscale.errors import UserError

TEXT_KINDS = ("description", "conversation", "reasoning")


def require(holds: bool, key: str, value: object, expected: str) -> None:
    """Raises UserError, naming the dotted key, its value and what was expected, unless `holds`."""
    if not holds:
        raise UserError(f"{key}={value}: expected {expected}")
