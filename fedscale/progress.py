"""How long work reports: a rich progress bar on a terminal, plain lines elsewhere, a queue inside worker processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.progress import Task as RichTask
from rich.text import Text


class Task(Protocol):
    """One piece of long work under way."""

    def advance(self, count: int = 1, note: str = "") -> None:
        """Report `count` more units done; `note` (e.g. "loss 0.31") replaces the one shown before."""


class Reporter(Protocol):
    """Where a stage reports to. A stage gets one and never prints."""

    def task(self, description: str, total: int | None, unit: str) -> _TaskContext: ...

    def say(self, line: str) -> None:
        """One line that stays on the screen and in the log."""


class _TaskContext(Protocol):
    def __enter__(self) -> Task: ...
    def __exit__(self, *exc: Any) -> Any: ...


class _RateColumn(TextColumn):
    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: RichTask) -> Text:
        rate = f"{task.speed:,.3g} {task.fields['unit']}/s" if task.speed else ""
        return Text(rate, style="progress.data.speed")


class _BarTask:
    def __init__(self, progress: Progress, task_id: Any) -> None:
        self._progress, self._id = progress, task_id

    def advance(self, count: int = 1, note: str = "") -> None:
        if note:
            self._progress.update(self._id, advance=count, note=note)
        else:
            self._progress.update(self._id, advance=count)


class TerminalReporter:
    """Bars with rate and time left. Off a terminal the bars are silent, and the lines of `say` remain."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _RateColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._open = 0

    @contextmanager
    def task(self, description: str, total: int | None, unit: str) -> Iterator[Task]:
        if self._open == 0:
            self._progress.start()
        self._open += 1
        task_id = self._progress.add_task(description, total=total, unit=unit, note="")
        try:
            yield _BarTask(self._progress, task_id)
        finally:
            self._progress.remove_task(task_id)
            self._open -= 1
            if self._open == 0:
                self._progress.stop()

    def say(self, line: str) -> None:
        self.console.print(line, markup=False)
        sys.stderr.flush()


class _SilentTask:
    def advance(self, count: int = 1, note: str = "") -> None:
        return None


class SilentReporter:
    """Keeps what was said and shows nothing: for tests and for use from Python."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    @contextmanager
    def task(self, description: str, total: int | None, unit: str) -> Iterator[Task]:
        yield _SilentTask()

    def say(self, line: str) -> None:
        self.lines.append(line)


class LabelledReporter:
    """Says with every task and line which child run it belongs to."""

    def __init__(self, reporter: Reporter, label: str) -> None:
        self._reporter, self._label = reporter, label

    @contextmanager
    def task(self, description: str, total: int | None, unit: str) -> Iterator[Task]:
        with self._reporter.task(f"{description} ({self._label})", total, unit) as task:
            yield task

    def say(self, line: str) -> None:
        self._reporter.say(f"({self._label}) {line}")


class QueueReporter:
    """Inside a worker process: puts what is reported on a queue, for `forward` in the parent to show."""

    def __init__(self, events: Any) -> None:
        self._events = events
        self._count = 0

    @contextmanager
    def task(self, description: str, total: int | None, unit: str) -> Iterator[Task]:
        self._count += 1
        key = (os.getpid(), self._count)
        self._events.put(("open", key, description, total, unit))
        try:
            yield _QueueTask(self._events, key)
        finally:
            self._events.put(("close", key))

    def say(self, line: str) -> None:
        self._events.put(("say", line))


class _QueueTask:
    def __init__(self, events: Any, key: tuple[int, int]) -> None:
        self._events, self._key = events, key

    def advance(self, count: int = 1, note: str = "") -> None:
        self._events.put(("advance", self._key, count, note))


def forward(events: Any, reporter: Reporter) -> None:
    """Show what workers' `QueueReporter`s put on `events` on `reporter`, until a None arrives."""
    with ExitStack() as stack:
        tasks: dict[tuple[int, int], tuple[ExitStack, Task]] = {}
        while (event := events.get()) is not None:
            kind, *arguments = event
            if kind == "say":
                reporter.say(*arguments)
            elif kind == "open":
                key, description, total, unit = arguments
                own = stack.enter_context(ExitStack())
                tasks[key] = own, own.enter_context(reporter.task(description, total, unit))
            elif kind == "close":
                tasks.pop(arguments[0])[0].close()
            else:
                key, count, note = arguments
                tasks[key][1].advance(count, note)
