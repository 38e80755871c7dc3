"""Fixtures of the attacks."""

from __future__ import annotations

from collections.abc import Iterator

import databases
import pytest
from Attacks.tenants import World
from databases import Database


@pytest.fixture
def world(database: Database) -> World:
    """Alpha and beta, empty, for this test alone."""
    return World(database)


@pytest.fixture(autouse=True)
def _short_connections(request: pytest.FixtureRequest) -> Iterator[None]:
    """Closes what a test opened in the world of its module: settings and cursors must not stay for the next one."""
    yield
    if "filled" in request.fixturenames:
        request.getfixturevalue("filled").close_connections()


@pytest.fixture(scope="module")
def filled(server: str, template: str) -> Iterator[World]:
    """Alpha, and beta with one of everything; shared by the tests of a module, which must not change it."""
    with databases.temporary(server, template) as database:
        yield World(database).fill_beta()
