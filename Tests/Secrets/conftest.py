"""Fixtures of sealed keys and calls."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from databases import Database
from sealed import Keeper, KeyedProvider


@pytest.fixture
def keeper(database: Database, martlet_bin: Path, tmp_path: Path) -> Keeper:
    """Master keys for this test's database."""
    return Keeper(database, martlet_bin, tmp_path)


@pytest.fixture
def provider() -> Iterator[KeyedProvider]:
    """A provider that notes the keys it is shown."""
    with KeyedProvider() as server:
        yield server
