"""Runs that nothing disturbed: a tiny one with stand-ins for its teachers, and one of two ranks."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.experiment import Experiment, undisturbed
from tests.faults.tiny import Tiny, finish, stood_in


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The tiny run from its beginning to its end."""
    with stood_in() as patch:
        return finish(tmp_path_factory.mktemp("tiny"), patch)


@pytest.fixture
def stand_ins() -> Iterator[None]:
    """Teachers that need no weights, for one test: the next one in this process may want real ones."""
    with stood_in():
        yield


@pytest.fixture
def begun(finished: Tiny, stand_ins: None, tmp_path: Path) -> Callable[..., Tiny]:
    """A tiny run at a place, with all that a stage reads, and nothing of the stage."""

    def begin(stage: str, place: Path | None = None) -> Tiny:
        tiny = Tiny(finished.place.parent / "data", place or tmp_path / "runs", tmp_path / "words")
        tiny.begin(stage, finished)
        return tiny

    return begin


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Every stage by two ranks, from beginning to end."""
    return undisturbed(tmp_path_factory.mktemp("undisturbed"))
