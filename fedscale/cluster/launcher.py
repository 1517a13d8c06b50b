"""`python -m fedscale.cluster.launcher MODULE ARGUMENTS…`: a launcher's module, with the exit code of its ranks.

torchrun and accelerate end with 1 whatever their ranks end with; Slurm's scripts need to know a stage that was stopped
with its state saved (75) and a rank that was killed (128 + signal) from a mistake in the config (2).
"""

from __future__ import annotations

import runpy
import signal
import sys

from fedscale.errors import EXIT_BUG, EXIT_REQUEUE


def main() -> None:
    """Run the launcher as `python -m` would, and exit for it. Told to stop, it has given its ranks time to save."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    sys.argv = sys.argv[1:]
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        codes = [failure.exitcode for failure in error.failures.values()]
        _exit(error, EXIT_REQUEUE if EXIT_REQUEUE in codes else first.exitcode)
    except SignalException as error:
        _exit(error, EXIT_REQUEUE if error.sigval == signal.SIGTERM else -int(error.sigval))


def _exit(error: Exception, code: int) -> None:
    print(str(error).strip(), file=sys.stderr)
    sys.exit(128 - code if code < 0 else code or EXIT_BUG)  # multiprocessing's -9 is the shell's 137


if __name__ == "__main__":
    main()
