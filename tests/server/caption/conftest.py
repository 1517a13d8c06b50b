"""The pool of three shards of five images that most tests caption."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedscale.data.manifest import Manifest
from fedscale.server.caption import job
from fedscale.session import Session
from tests.server.caption.support import Captioned, FakeEngine, make_pool, sample


@pytest.fixture
def pool(tmp_path: Path) -> Manifest:
    """Three shards of five images."""
    return make_pool(tmp_path / "shards", [[sample(n) for n in range(5 * s, 5 * s + 5)] for s in range(3)])


@pytest.fixture
def captioned(pool: Manifest, tmp_path: Path) -> Captioned:
    return Captioned(pool, tmp_path / "run")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Session, FakeEngine]]:
    """Installs a FakeEngine, whatever `caption.engine` says."""

    def install(session: Session | None = None, **settings: Any) -> tuple[Session, FakeEngine]:
        session = session or Session()
        engine = FakeEngine(session, **settings)
        monkeypatch.setattr(job, "make_engine", lambda config: engine)
        return session, engine

    return install
