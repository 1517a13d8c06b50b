"""`fedscale`, and `python -m fedscale`: what the launchers (accelerate, deepspeed, torchrun, srun) start."""

import os
import signal
import sys
from types import FrameType

from fedscale.errors import EXIT_INTERRUPTED


def main() -> None:
    """The command line, whose import alone takes a while: Ctrl-C is as quiet then as in a command."""
    try:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else we are told to ignore it
            signal.signal(signal.SIGINT, _interrupt)
        from fedscale.cli import main as command_line

        command_line()
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """KeyboardInterrupt, but while torch is imported, whose C++ aborts for it ("terminate called after throwing")."""
    if getattr(getattr(sys.modules.get("torch"), "__spec__", None), "_initializing", False):
        os._exit(EXIT_INTERRUPTED)
    signal.default_int_handler(number, frame)


if __name__ == "__main__":
    main()
