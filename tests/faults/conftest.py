"""A tiny run that nothing disturbed, and its teachers, which are small stand-ins."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedscale.models import language
from fedscale.server.align import cache
from fedscale.server.pretrain import lessons
from tests.faults.tiny import Tiny, finish
from tests.server.align.support import colour_teacher
from tests.server.pretrain.test_stage import FakeClip, FakeMllm


@pytest.fixture(scope="session")
def stand_ins() -> Iterator[pytest.MonkeyPatch]:
    """Teachers that need no weights, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lessons, "load_clip", lambda config, device: FakeClip())
        patch.setattr(language, "load_mllm", lambda config, device: FakeMllm())
        patch.setattr(cache, "load_teacher", lambda config, names, device: colour_teacher)
        yield patch


@pytest.fixture(scope="session")
def finished(stand_ins: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The tiny run from its beginning to its end."""
    return finish(tmp_path_factory.mktemp("tiny"), stand_ins)


@pytest.fixture
def begun(finished: Tiny, tmp_path: Path) -> Callable[..., Tiny]:
    """A tiny run at a place, with all that a stage reads, and nothing of the stage."""

    def begin(stage: str, place: Path | None = None) -> Tiny:
        tiny = Tiny(finished.place.parent / "data", place or tmp_path / "runs", tmp_path / "words")
        tiny.begin(stage, finished)
        return tiny

    return begin
