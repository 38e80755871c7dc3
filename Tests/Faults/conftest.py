"""A database server of a test's own, which may be stopped and killed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """An embedded server of this test's own: call it with the words that scripts/server takes."""
    state = subprocess.run([REPOSITORY / "scripts/state"], check=True, capture_output=True, text=True).stdout.strip()
    # Beside the other throw-away servers, where a killed run's remains are found and removed.
    directory = Path(state) / f"run.{os.getpid()}.{tmp_path.name}"

    def server(*words: str) -> str:
        done = subprocess.run(
            [REPOSITORY / "scripts/server", directory, *words], capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    server("start", "16" if os.environ.get("MARTLET_PG_VERSION") == "16" else "18")
    yield server
    server("stop", "immediate")
    subprocess.run(["rm", "-rf", directory], check=True)
