"""Errors that are for people, and the exit codes of the command line.

A `UserError` is one line that names the file or key, says what was expected and what to do. The command line prints
it without a traceback and exits with `EXIT_USER`. Anything else that escapes is a bug of ours, and keeps its traceback.
"""

EXIT_DONE = 0
EXIT_BUG = 1
EXIT_USER = 2
EXIT_REQUEUE = 75
EXIT_INTERRUPTED = 130  # by SIGINT, as shells and click have it


class UserError(Exception):
    """A mistake in what we were given: a key, a file, a value. Its text is the one line that the user reads."""


class Diverged(UserError):
    """Training left the finite numbers: the learning rate (or another option) is too high for it."""


class Stopped(Exception):
    """A signal asked the stage to stop; its state is saved, and the same command resumes it."""


class WorkerLost(Exception):
    """A worker process of this one is gone: killed, or out of memory. Its text is the one line that the user reads."""
