"""What row-level security costs: the same statements as a member and as the owner of the tables, in turns.

Run it beside a server that it may make a database on, for example:

    scripts/with-server 18 .martlet/venv/bin/python Tests/Benchmarks/rls_cost.py

It fills 100 tenants with 1,000 generations each, then times reading one's own, inserting, and settling. Inserts and
settlements are rolled back, so that every round meets the same tables. Printed are medians and their ratio; then the
same of the quickest tenth, which a busy machine changes least, and how much longer the server computed for the member.
--json FILE writes them down; --limits fails where a ratio of the quickest tenth is above its target.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "Tests"))

import databases  # noqa: E402
from databases import Database  # noqa: E402

TENANTS, USERS, ROWS = 100, 10, 100_000
BATCH = 50
# At most this much more than as the owner.
TARGETS = {"read": 1.10, "settle": 1.10, "insert": 1.25}

_TENANTS = """
with t as (insert into ai.tenants (name) select 'rls ' || n from generate_series(1, %(tenants)s) n returning id)
insert into ai.members (tenant_id, user_id, role)
select t.id, 'user ' || u, 'user' from t cross join generate_series(1, %(users)s) u
"""
# Without triggers: what these rows are is all that counts. Ids in the order of time, tenants and users in turns.
_ROWS = """
insert into ai.generations (tenant_id, user_id, prompt, model, status, output, finished_at)
select t.id, 'user ' || 1 + (n / %(tenants)s) %% %(users)s, 'What about ' || n, 'bench', 'succeeded',
       repeat('An answer of some length. ', 8), now()
  from generate_series(1, %(rows)s) n
  join (select id, row_number() over (order by id) as k from ai.tenants) t on t.k = 1 + n %% %(tenants)s
"""


@dataclass
class Pair:
    """One statement, with what it is called with as each; `write` is rolled back."""

    name: str
    kind: str
    as_member: tuple[str, Any]
    as_owner: tuple[str, Any]
    rounds: int
    write: bool = False
    prepare: bool = True
    limited: bool = True


def migrate(database: Database, folder: Path | None) -> None:
    """By the binary, or from the files of a folder that has migrations/ and sql/."""
    if folder is None:
        binary = os.environ.get("MARTLET_BIN", str(REPOSITORY / ".build/release/martlet"))
        subprocess.run([binary, "migrate"], env={**os.environ, "DATABASE_URL": database.url}, check=True)
        return
    files = [*sorted(folder.glob("migrations/*.sql")), *sorted(folder.glob("sql/*.sql"))]
    arguments = [part for file in files for part in ("-f", str(file))]
    subprocess.run(
        ["psql", "-qX1", "-v", "ON_ERROR_STOP=1", "-d", database.url, *arguments],
        env={**os.environ, "PGOPTIONS": "-c client_min_messages=warning"},
        check=True,
        stdout=subprocess.DEVNULL,
    )


def fill(database: Database) -> None:
    values = {"tenants": TENANTS, "users": USERS, "rows": ROWS}
    connection = database.superuser
    connection.execute(_TENANTS, values)
    with connection.transaction():
        connection.execute("set local session_replication_role = replica")
        connection.execute(_ROWS, values)
    connection.execute("vacuum analyze ai.generations")
    connection.execute("analyze")


def processor_ns(backend: int) -> int:
    """How long a server process has computed, whatever else runs on the machine; 0 where that is not told."""
    try:
        return int(Path(f"/proc/{backend}/schedstat").read_text().split()[0])
    except OSError:
        return 0


def time_of(
    connection: psycopg.Connection[Any], statement: str, values: Any, write: bool, prepare: bool
) -> tuple[float, float]:
    """Microseconds until the answer is there, and those in which the server computed."""
    if write:
        connection.execute("begin")
    backend = connection.info.backend_pid
    computed = processor_ns(backend)
    began = time.perf_counter_ns()
    cursor = connection.execute(statement, values, prepare=prepare)
    took = time.perf_counter_ns() - began
    computed = processor_ns(backend) - computed
    if cursor.description:
        cursor.fetchall()
    if write:
        connection.execute("rollback")
    return took / 1000, computed / 1000


def measure(pair: Pair, member: psycopg.Connection[Any], owner: psycopg.Connection[Any]) -> dict[str, Any]:
    """Both in turns; the first turns, in which caches fill and plans are made, do not count."""
    times: dict[str, list[tuple[float, float]]] = {"member": [], "owner": []}
    turns = [("member", member, pair.as_member), ("owner", owner, pair.as_owner)]
    warm = max(10, pair.rounds // 10)
    for number in range(pair.rounds + warm):
        for who, connection, (statement, values) in turns if number % 2 else turns[::-1]:
            took = time_of(connection, statement, values, pair.write, pair.prepare)
            if number >= warm:
                times[who].append(took)
    middle, quick, computed = (
        {who: statistics.quantiles([t[column] for t in times[who]], n=10)[tenth] for who in times}
        for column, tenth in ((0, 4), (0, 0), (1, 0))
    )
    return {
        "statement": pair.name,
        "kind": pair.kind,
        "member_us": round(middle["member"], 1),
        "owner_us": round(middle["owner"], 1),
        "ratio": round(middle["member"] / middle["owner"], 3),
        "quick_member_us": round(quick["member"], 1),
        "quick_owner_us": round(quick["owner"], 1),
        "quick_ratio": round(quick["member"] / quick["owner"], 3),
        "computed_more_us": round(computed["member"] - computed["owner"], 1),
        "target": TARGETS[pair.kind] if pair.limited else None,
    }


def leased(database: Database, worker: psycopg.Connection[Any], ask: Callable[[], None]) -> tuple[str, Any]:
    """The call that settles a batch which a worker has claimed."""
    worker_id = worker.execute("select worker_id from ai.worker_register('bench', '0', 4)").fetchone()["worker_id"]
    ask()
    results: list[dict[str, Any]] = []
    cursor = None
    for _ in range(10):
        rows = worker.execute(
            "select generation_id, attempt, cursor from ai.worker_claim(%s, %s, %s)", [worker_id, BATCH, cursor]
        ).fetchall()
        cursor = rows[-1]["cursor"]
        results += [
            {
                "id": str(row["generation_id"]),
                "attempt": row["attempt"],
                "outcome": "succeeded",
                "output": "An answer of some length. " * 8,
                "usage": {"input": 40, "output": 60},
                "sent": True,
            }
            for row in rows
            if row["generation_id"]
        ]
        if len(results) >= BATCH:
            break
    assert len(results) == BATCH, f"{len(results)} of {BATCH} claimed"
    return "select result from ai.worker_settle(%s, %s::jsonb)", [worker_id, json.dumps(results)]


def by_claims(database: Database, tenant: str) -> psycopg.Connection[Any]:
    """A gateway's connection, with the claims of the user that is measured."""
    gateway = database.login("ai_user")
    database.execute("insert into ai.authenticators (role_name) values (%s)", gateway.name)
    claims = {"sub": "user 1", "role": "web", "exp": 9_999_999_999, "app_metadata": {"tenant_id": str(tenant)}}
    connection = database.connect(user=gateway)
    connection.execute("select set_config('request.jwt.claims', %s, false)", [json.dumps(claims)])
    return connection


def by_token(database: Database, tenant: str) -> psycopg.Connection[Any]:
    """A connection that has logged in with an API key of the user that is measured."""
    key = database.value("select key from ai.create_api_key('bench', 'user 1', p_tenant_id => %s)", tenant)
    connection = database.connect(user=database.login("ai_user"))
    connection.execute("select ai.login(%s, true)", [key])
    return connection


def main() -> int:
    parser = argparse.ArgumentParser(description="What row-level security costs.")
    parser.add_argument("--folder", type=Path, help="take the SQL from this folder and not from the binary")
    parser.add_argument("--rounds", type=int, default=400, help="rounds of each pair")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--limits", action="store_true", help="fail where a ratio is above its target")
    options = parser.parse_args()
    server = os.environ.get("MARTLET_TEST_DATABASE_URL") or parser.error("MARTLET_TEST_DATABASE_URL is not set")

    with databases.temporary(server) as database:
        migrate(database, options.folder)
        database.model(database.provider("bench", "http://127.0.0.1:1/v1"), "bench")
        tenant = database.tenant("the one that is measured")
        person = database.member(tenant, "user 1")
        fill(database)
        owner, member = database.connect(), database.connect(user=person)
        worker = database.connect(user=database.worker)
        (own,) = database.execute(
            "select id from ai.generations where tenant_id = %s and user_id = %s order by id desc limit 1 offset 30",
            tenant,
            "user 1",
        )
        whose = [tenant, "user 1"]
        columns = "id, kind, status, prompt, output, cost, created_at, finished_at"
        newest = f"select {columns} from ai.generations where tenant_id = %s and user_id = %s order by id desc limit 20"
        by_id = f"select {columns} from ai.generations where tenant_id = %s and id = %s"
        count = "select count(*) from ai.generations where tenant_id = %s and user_id = %s"
        own_newest = f"select {columns} from ai.generations order by id desc limit 20"
        own_by_id = f"select {columns} from ai.generations where id = %s"
        one = "insert into ai.generations (prompt, model) values ('x', 'bench')"
        one_for = "insert into ai.generations (tenant_id, user_id, prompt, model) values (%s, %s, 'x', 'bench')"
        many = "insert into ai.generations (prompt, model) select 'x' || n, 'bench' from generate_series(1, 100) n"
        many_for = (
            "insert into ai.generations (tenant_id, user_id, prompt, model) "
            "select %s, %s, 'x' || n, 'bench' from generate_series(1, 100) n"
        )
        rounds = options.rounds
        few = max(20, rounds // 8)
        settle = leased(database, worker, lambda: ask(database, whose))
        pairs = [
            Pair("the newest 20 of one's own", "read", (newest, whose), (newest, whose), rounds),
            Pair(
                "one of one's own by its id", "read", (by_id, [tenant, own["id"]]), (by_id, [tenant, own["id"]]), rounds
            ),
            Pair("how many one has", "read", (count, whose), (count, whose), rounds),
            Pair("the newest 20, whose by policy only", "read", (own_newest, []), (newest, whose), rounds),
            Pair(
                "one by its id, whose by policy only",
                "read",
                (own_by_id, [own["id"]]),
                (by_id, [tenant, own["id"]]),
                rounds,
            ),
            Pair(
                "one by its id, unprepared",
                "read",
                (own_by_id, [own["id"]]),
                (by_id, [tenant, own["id"]]),
                rounds,
                prepare=False,
                limited=False,
            ),
            Pair("insert of 1", "insert", (one, []), (one_for, whose), rounds, write=True),
            Pair("insert of 100", "insert", (many, []), (many_for, whose), few, write=True),
        ]
        results = [measure(pair, member, owner) for pair in pairs]
        # Any login that is not bound is told apart for more than a bound one.
        for who, other in (("a JWT", by_claims(database, tenant)), ("a session token", by_token(database, tenant))):
            read = Pair(
                f"one by its id, by {who}",
                "read",
                (own_by_id, [own["id"]]),
                (by_id, [tenant, own["id"]]),
                rounds,
                limited=False,
            )
            results.append(measure(read, other, owner))
        settling = Pair(f"settling {BATCH}", "settle", settle, settle, few, write=True)
        results.append(measure(settling, worker, owner))
        version = database.value("show server_version")

    print(
        f"PostgreSQL {version}; {ROWS:,} generations of {TENANTS} tenants; {rounds} or {few} rounds"
        "; µs, medians | quickest tenth"
    )
    print(
        f"{'':38} {'member':>9} {'owner':>9} {'ratio':>7} | {'member':>9} {'owner':>9} {'ratio':>7} {'more':>8}  target"
    )
    for r in results:
        above = r["target"] is not None and r["quick_ratio"] > r["target"]
        target = "     -" if r["target"] is None else f"{r['target']:6.2f}{'  above' if above else ''}"
        print(
            f"{r['statement']:38} {r['member_us']:9.1f} {r['owner_us']:9.1f} {r['ratio']:7.3f}"
            f" | {r['quick_member_us']:9.1f} {r['quick_owner_us']:9.1f} {r['quick_ratio']:7.3f}"
            f" {r['computed_more_us']:8.1f}{target}"
        )
    if options.json:
        options.json.write_text(json.dumps({"postgres": version, "results": results}, indent=2) + "\n")
    return int(options.limits and any(r["target"] is not None and r["quick_ratio"] > r["target"] for r in results))


def ask(database: Database, whose: list[Any]) -> None:
    database.execute(
        "insert into ai.generations (tenant_id, user_id, prompt, model) "
        f"select %s, %s, 'x' || n, 'bench' from generate_series(1, {BATCH}) n",
        *whose,
    )


if __name__ == "__main__":
    sys.exit(main())
