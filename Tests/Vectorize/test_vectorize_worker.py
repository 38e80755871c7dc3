"""ai.vectorize() with a real worker, and with a provider that fails."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable

from databases import Database
from processes import Simulator, Worker
from vectorized import App
from waiting import until


def every_request(simulator: Simulator, directives: str) -> None:
    """From now on the simulator answers by these, wherever a request says nothing else."""
    with urllib.request.urlopen(simulator.base_url + "/__defaults", directives.encode(), timeout=30):  # noqa: S310
        pass


def vector_of(app: App, text: str, model: str) -> str:
    """The vector of a question, by the same worker."""
    one = app.execute("select ai.embed(%s, %s) as id", text, model)[0]["id"]
    row = until(
        lambda: app.execute(
            "select embedding::text as vector from ai.generations where id = %s and finished_at is not null", one
        ),
        "the vector of the question",
    )[0]
    return row["vector"]


def test_a_table_is_embedded_searched_changed_and_rebuilt(
    database: Database, worker: Callable[..., Worker], simulator: Simulator
) -> None:
    app = App(database)
    provider = database.provider("sim", simulator.base_url + "/v1", secret="SIM_API_KEY")
    database.model(provider, "sim/embed", "sim-embed", kind="embedding")
    database.execute("update ai.settings set maintain_ms = 100")
    app.execute(
        "insert into shop.notes"
        " select i, null, 'note ' || i || ' about the ' || (array['sea', 'fire', 'bread'])[1 + i % 3]"
        " from generate_series(1, 300) i"
    )
    assert app.vectorize("local/hash") == 300
    worker(database)
    until(lambda: app.progress()["embedded"] == 300, "300 embeddings")
    calls = database.execute("select purpose, count(*) as n from ai.generations group by purpose")
    assert calls == [{"purpose": "rows", "n": 10}], "32 texts a call"

    question = vector_of(app, "note 7 about the fire", "local/hash")
    best = app.execute("select * from ai.search_rows('notes', %s, 0.2, 5)", question)
    assert best[0]["key"] == "7"
    assert best[0]["similarity"] > 0.99

    # One by one, and changed: it follows by itself.
    for number in range(301, 341):
        app.execute("insert into shop.notes values (%s, null, 'short')", number)
    app.execute("update shop.notes set body = 'something else altogether' where id = 7")
    app.execute("delete from shop.notes where id > 320")
    until(lambda: app.progress()["embedded"] == 320 and app.progress()["pending"] == 0, "the changes")
    best = app.execute("select * from ai.search_rows('notes', %s, 0.99, 5)", question)
    assert best == []

    # With a provider that fails at first.
    every_request(simulator, "status=503;times=1")
    assert app.execute("select ai.revectorize('notes', 'sim/embed') as rows")[0]["rows"] == 320
    app.execute("insert into shop.notes values (1000, null, 'meanwhile')")
    until(lambda: app.progress()["model"] == "sim/embed", "the switch", seconds=60)
    assert app.progress()["total"] == 321
    assert app.progress()["failed"] == 0
    until(
        lambda: database.value("select count(*) from ai.vectorized_rows") == 321, "the former embeddings to be removed"
    )
    question = vector_of(app, "meanwhile", "sim/embed")
    assert app.execute("select key from ai.search_rows('notes', %s, 0.9)", question) == [{"key": "1000"}]
    assert len(json.loads(question)) == 1536


def test_what_a_provider_refuses_has_failed_until_it_is_asked_for_again(
    database: Database, worker: Callable[..., Worker], simulator: Simulator
) -> None:
    app = App(database)
    provider = database.provider("sim", simulator.base_url + "/v1", secret="SIM_API_KEY")
    database.model(provider, "sim/embed", "sim-embed", kind="embedding")
    app.execute("insert into shop.notes values (1, null, 'one'), (2, null, 'two')")
    every_request(simulator, "status=400")
    app.vectorize("sim/embed")
    worker(database)
    until(lambda: app.progress()["failed"] == 2, "the failure")
    assert app.progress()["last_error"]["http_status"] == 400
    every_request(simulator, "")
    assert app.execute("select ai.vectorize_retry('notes') as rows")[0]["rows"] == 2
    until(lambda: app.progress()["embedded"] == 2, "the second try")
