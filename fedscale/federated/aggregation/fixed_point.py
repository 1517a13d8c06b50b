"""How a double becomes an integer by one addition.

A double in [2^52, 2^53) is an integer, and its last bits are that integer's. Adding MAGIC therefore rounds |x| < 2^51
to the nearest integer (ties to even), which is the sum's bit pattern minus MAGIC's. AVX2 has no conversion instruction.
"""

MAGIC = 1.5 * 2.0**52
MAGIC_BITS = 0x4338000000000000
VALUE_LIMIT = 2.0**51


def biases(count: int) -> int:
    """What `count` bit patterns carry too much, modulo 2^64 as int64 holds it: their sum wraps around likewise."""
    return (count * MAGIC_BITS + 2**63) % 2**64 - 2**63
