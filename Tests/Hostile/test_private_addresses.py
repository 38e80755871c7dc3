"""A tenant says where its own provider is, and cannot send the worker into the operator's network by that."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from certificates import Authority, TLSProvider
from databases import Database, Member
from processes import Process, Worker
from sealed import asked
from simulated import QUICK, calls, ended

SPELLINGS = [
    "127.0.0.1",
    "localhost",
    "LocalHost",
    "127.1",
    "2130706433",
    "0x7f000001",
    "0177.0.0.1",
    "0",
    "0.0.0.0",  # noqa: S104
    "[::1]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[64:ff9b::7f00:1]",
]
ELSEWHERE = [
    "https://10.0.0.1",
    "https://192.168.1.1",
    "https://172.16.0.1",
    "https://100.100.100.200",
    "https://169.254.169.254",
    "https://[fd00:ec2::254]",
    "https://[fe80::1]",
    "https://0xa9fea9fe",
    "https://224.0.0.1",
]


class Door:
    """Counts who comes in."""

    def __init__(self) -> None:
        self.visits = 0
        self._listeners = [socket.create_server(("127.0.0.1", 0))]
        self.port = self._listeners[0].getsockname()[1]
        with contextlib.suppress(OSError):
            self._listeners.append(socket.create_server(("::1", self.port), family=socket.AF_INET6))
        for listener in self._listeners:
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                listener.accept()[0].close()
                self.visits += 1

    def close(self) -> None:
        for listener in self._listeners:
            listener.close()


@pytest.fixture
def door() -> Iterator[Door]:
    """A port of this machine."""
    door = Door()
    yield door
    door.close()


@pytest.fixture
def admin(database: Database) -> Member:
    """The administrator of a tenant."""
    settings = {**QUICK, "max_attempts": 3}
    database.execute("delete from ai.breaker_settings")
    database.execute(f"update ai.settings set {', '.join(f'{name} = %s' for name in settings)}", *settings.values())
    return database.member(role="admin")


def own_model(app: psycopg.Connection[dict[str, Any]], name: str, base_url: str) -> str:
    """A provider and a model that the tenant makes itself."""
    row = app.execute(
        "insert into ai.providers (name, dialect, base_url) values (%s, 'openai', %s) returning id", [name, base_url]
    ).fetchone()
    app.execute(
        "insert into ai.models (provider_id, name, wire_name) values (%s, %s, 'm')", [row["id"], f"{name}/model"]
    )
    return f"{name}/model"


def test_no_spelling_of_a_private_address_is_called(
    database: Database, admin: Member, worker: Callable[..., Worker], door: Door
) -> None:
    process = worker(database, log_level="debug")
    app = database.connect(user=admin)
    urls = [f"https://{host}:{door.port}" for host in SPELLINGS] + ELSEWHERE
    generations = [
        (url, asked(database, admin, own_model(app, f"own{number}", url + "/v1"))) for number, url in enumerate(urls)
    ]
    for url, generation_id in generations:
        row = ended(database, generation_id)
        assert (row["status"], row["error"]["class"]) == ("failed", "unsendable"), (url, row["error"])
        assert row["error"]["message"] == "the provider's address does not lead to the public internet"
        books = calls(database, generation_id)
        # Not tried again, and nothing to pay.
        assert [(call["status"], call["input_tokens"], call["error_class"]) for call in books] == [
            ("failed", 0, "unsendable")
        ]
        assert row["error"]["code"] == "private_address", row["error"]
        assert "127.0.0.1" not in str(row["error"]).replace(url, "")
    assert door.visits == 0
    assert process.running


def test_a_shared_provider_at_the_same_address_goes_on_and_its_connections_are_not_lent(
    database: Database, admin: Member, worker: Callable[..., Worker], tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    with TLSProvider(authority.issue("good", "DNS:localhost")) as inside:
        database.model(database.provider("shared", inside.url("localhost")), "shared/model")
        worker(database, env={"MARTLET_CA_FILE": str(authority.certificate)})
        own = own_model(database.connect(user=admin), "own", inside.url("localhost"))
        for number in range(3):
            shared = ended(database, asked(database, admin, "shared/model", f"shared {number}"))
            assert shared["status"] == "succeeded", shared["error"]
            row = ended(database, asked(database, admin, own, f"own {number}"))
            assert (row["status"], row["error"]["class"]) == ("failed", "unsendable")
        assert [body["messages"][-1]["content"] for body in inside.bodies] == ["shared 0", "shared 1", "shared 2"]


def test_networks_that_the_operator_names_are_open_to_tenants(
    database: Database, admin: Member, worker: Callable[..., Worker], tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    with TLSProvider(authority.issue("good", "DNS:localhost,IP:127.0.0.2")) as gateway:
        worker(
            database,
            env={
                "MARTLET_CA_FILE": str(authority.certificate),
                "MARTLET_ALLOWED_NETWORKS": "10.1.0.0/16, 127.0.0.1/32",
            },
        )
        app = database.connect(user=admin)
        inside = ended(database, asked(database, admin, own_model(app, "inside", gateway.url("localhost"))))
        assert inside["status"] == "succeeded", inside["error"]
        beside = ended(database, asked(database, admin, own_model(app, "beside", gateway.url("127.0.0.2"))))
        assert (beside["status"], beside["error"]["class"]) == ("failed", "unsendable")


def test_a_network_that_is_none_is_a_wrong_call(database: Database, martlet: Callable[..., Process]) -> None:
    process = martlet("work", env={"DATABASE_URL": database.url, "MARTLET_ALLOWED_NETWORKS": "10.1.2.3/16"})
    assert process.wait() == 2
    assert "10.1.2.3/16" in process.text
