"""Two tenants for attackers: alpha, whose members attack, and beta, who has something to lose."""

# ruff: noqa: E501 (a statement of an attack is read in one piece)
from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field
from typing import Any

import psycopg
from databases import Database, Login, Member
from protocol import PlainWorker
from psycopg import sql

# In every text of beta's. No session of alpha's, of nobody, of a monitor may ever see it.
MARKER = "quartz-heron-4417"
VECTOR = "[" + ",".join(["1"] + ["0"] * 383) + "]"


@dataclass
class World:
    """Tenants alpha and beta, a login for each kind of member, and beta's belongings by kind."""

    database: Database
    alpha: uuid.UUID = field(init=False)
    beta: uuid.UUID = field(init=False)
    logins: dict[str, Member | Login] = field(default_factory=dict)
    belongings: dict[str, Any] = field(default_factory=dict)
    _opened: list[psycopg.Connection[dict[str, Any]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        db = self.database
        made, connect = self._opened, db.connect

        def remember(*arguments: Any, **options: Any) -> psycopg.Connection[dict[str, Any]]:
            connection = connect(*arguments, **options)
            made.append(connection)
            return connection

        db.connect = remember  # type: ignore[method-assign]
        self.alpha, self.beta = db.tenant(), db.tenant()
        for name, tenant, role in (
            ("ann", self.alpha, "user"),
            ("abe", self.alpha, "user"),
            ("dev", self.alpha, "developer"),
            ("adm", self.alpha, "admin"),
            ("bob", self.beta, "user"),
            ("bev", self.beta, "developer"),
            ("boss", self.beta, "admin"),
        ):
            self.logins[name] = db.member(tenant, name, role)
        # Members that are no members: a login without a binding, and those of machines.
        self.logins["stray"] = db.login("ai_admin")
        self.logins["worker"] = db.login("ai_worker")
        self.logins["monitor"] = db.login("ai_monitor")
        self.logins["public"] = db.login()
        provider = db.provider("sim", "http://127.0.0.1:9/v1")
        db.model(provider, "shared/model", "one")

    def connect(self, name: str, **options: Any) -> psycopg.Connection[dict[str, Any]]:
        """A new connection as one of them."""
        return self.database.connect(user=self.logins[name], **options)

    def close_connections(self) -> None:
        """Closes all but the administrator's."""
        for connection in self._opened:
            if connection is not self.database.superuser:
                connection.close()
        self._opened.clear()

    def schema(self, name: str) -> str:
        """A schema of one of them's own."""
        schema = f"own_{name}"
        self.database.superuser.execute(
            sql.SQL("create schema if not exists {} authorization {}").format(
                sql.Identifier(schema), sql.Identifier(self._role(name))
            )
        )
        return schema

    def _role(self, name: str) -> str:
        login = self.logins[name]
        return login.login.name if isinstance(login, Member) else login.name

    def role(self, name: str) -> str:
        """The login role of one of them."""
        return self._role(name)

    def fill_beta(self) -> World:
        """Gives beta one of everything, each with the marker in its texts."""
        db, things = self.database, self.belongings
        bob, bev, boss = self.connect("bob"), self.connect("bev"), self.connect("boss")
        worker = PlainWorker(db)

        def value(connection: psycopg.Connection[dict[str, Any]], query: str, *arguments: Any) -> Any:
            row = connection.execute(query, arguments).fetchone()
            assert row is not None
            return next(iter(row.values()))

        db.execute(
            "insert into ai.cache_policies (tenant_id, scope, exact, semantic) values (%s, 'tenant', true, false)",
            self.beta,
        )
        db.execute("insert into ai.capture_policies (tenant_id, mode) values (%s, 'all')", self.beta)
        db.execute(
            "insert into ai.guardrails (tenant_id, name, detector, action, options) values (%s, %s, 'terms', 'flag', %s)",
            self.beta, f"rule {MARKER}", json.dumps({"terms": [f"term {MARKER}"]}),
        )  # fmt: skip
        db.execute(
            "insert into ai.limits (tenant_id, metric, period, amount) values (%s, 'requests', 'hour', 4711)", self.beta
        )
        db.execute("insert into ai.credits (tenant_id, amount, note) values (%s, 4711, %s)", self.beta, MARKER)
        db.execute(
            "insert into ai.prompt_templates (tenant_id, name, version, system) values (%s, %s, 1, %s)",
            self.beta, f"template-{MARKER}", f"system {MARKER}",
        )  # fmt: skip
        db.execute(
            "insert into ai.context_sources (tenant_id, name, query) values (%s, 'betas', %s)",
            self.beta, f"select '{MARKER}' as secret",
        )  # fmt: skip
        db.execute(
            "insert into ai.providers (tenant_id, name, dialect, base_url, headers) values (%s, %s, 'openai', %s, %s)",
            self.beta, f"p-{MARKER}", f"https://{MARKER}.test/v1", json.dumps({"x-tag": MARKER}),
        )  # fmt: skip
        things["provider"] = db.value("select id from ai.providers where name = %s", f"p-{MARKER}")
        things["model_id"] = db.value(
            "insert into ai.models (tenant_id, provider_id, name, wire_name) values (%s, %s, %s, 'w') returning id",
            self.beta, things["provider"], f"model-{MARKER}",
        )  # fmt: skip
        db.execute(
            'insert into ai.prices (model_id, rates) values (%s, \'{"input": 47, "output": 11}\')', things["model_id"]
        )
        db.execute(
            "insert into ai.routes (tenant_id, profile, model_id) values (%s, %s, %s)",
            self.beta, f"profile-{MARKER}", things["model_id"],
        )  # fmt: skip
        db.execute("insert into ai.profiles (tenant_id, name) values (%s, %s)", self.beta, f"profile-{MARKER}")
        db.execute(
            "insert into ai.profile_rules (tenant_id, position, tier, profile) values (%s, 1, %s, %s)",
            self.beta, f"tier-{MARKER}", f"profile-{MARKER}",
        )  # fmt: skip
        value(boss, "select ai.set_role(%s, '{usage:read}')", f"role-{MARKER}")
        things |= {
            "template": f"template-{MARKER}",
            "model": f"model-{MARKER}",
            "profile": f"profile-{MARKER}",
            "role": f"role-{MARKER}",
            "user": "bob",
            "key_name": f"idempotent {MARKER}",
            "tag": f"tag {MARKER}",
        }

        things["conversation"] = value(bob, "select ai.start_conversation(%s)", f"talk {MARKER}")
        things["batch"] = value(bob, "select ai.create_batch(%s)", f"batch {MARKER}")
        things["generation"] = value(
            bob,
            "insert into ai.generations (prompt, model, stream, idempotency_key, cache_tags, metadata) values (%s, 'shared/model', true, %s, %s, %s)"
            " returning id",
            f"prompt {MARKER}", things["key_name"], [things["tag"]], json.dumps({"tag": MARKER}),
        )  # fmt: skip
        value(bob, "select ai.chat(%s, %s, model => 'shared/model')", things["conversation"], f"chat {MARKER}")
        value(
            bob,
            "select ai.generate(prompt => %s, model => 'shared/model', batch_id => %s)",
            f"in batch {MARKER}",
            things["batch"],
        )
        self._drain(worker)
        things["queued"] = value(
            bob,
            "select ai.generate(prompt => %s, model => 'shared/model', run_after => now() + interval '1 day')",
            f"later {MARKER}",
        )

        things["collection"] = f"collection {MARKER}"
        value(bev, "select ai.create_collection(%s)", things["collection"])
        things["document"] = value(
            bev, "select ai.add_document(%s, %s, title => %s, uri => %s, metadata => %s)",
            things["collection"], f"content {MARKER}", f"title {MARKER}", f"uri:{MARKER}", json.dumps({"tag": MARKER}),
        )  # fmt: skip
        things["artifact"] = value(
            bob, "select ai.add_artifact(%s, 'text/plain', %s)", f"file {MARKER}".encode(), f"{MARKER}.txt"
        )
        things["provider_batch"] = db.value(
            "insert into ai.provider_batches (tenant_id, provider_id, model_id, kind, wire_name, options, due_at, created_at, give_up_at)"
            " values (%s, %s, %s, 'chat', %s, '{}', now() + interval '1 day', now(), now() + interval '2 days') returning id",
            self.beta, things["provider"], things["model_id"], f"wire {MARKER}",
        )  # fmt: skip
        schema = self.schema("bev")
        bev.execute(f"create table {schema}.things (id text primary key, body text)")
        bev.execute(f"insert into {schema}.things values (%s, %s)", [f"key {MARKER}", f"body {MARKER}"])
        things["vectorizer"] = f"vectors {MARKER}"
        value(bev, f"select ai.vectorize('{schema}.things', array['body'], name => %s)", things["vectorizer"])
        things["vectorizer_id"] = db.value("select id from ai.vectorizers where name = %s", things["vectorizer"])
        self._drain(worker, embeddings=True)
        assert db.value("select count(*) from ai.chunk_vectors where tenant_id = %s", self.beta) > 0
        assert db.value("select count(*) from ai.vectorized_rows where state = 'embedded'") > 0

        key = boss.execute("select * from ai.create_api_key(%s, 'bob')", [f"key {MARKER}"]).fetchone()
        assert key is not None
        things["api_key_id"], things["api_key"] = key["id"], key["key"]
        return self

    def _drain(self, worker: PlainWorker, embeddings: bool = False) -> None:
        """Answers everything that is queued."""
        while attempts := worker.claim(look_at_everything=True):
            for attempt in attempts:
                row = self.database.execute("select * from ai.generations where id = %s", attempt.generation_id)[0]
                if row["kind"] == "embedding":
                    texts = self.database.value(
                        "select jsonb_array_length(messages) from ai.prepared where generation_id = %s",
                        attempt.generation_id,
                    )
                    worker.settle([attempt], output=None, embeddings=[json.loads(VECTOR)] * texts)
                else:
                    worker.settle(
                        [attempt],
                        output=f"answer {MARKER}",
                        tail=f"answer {MARKER}",
                        finish_reason="stop",
                        usage={"input": 1, "output": 1},
                    )


def outcome(connection: psycopg.Connection[dict[str, Any]], query: str, *arguments: Any) -> tuple[str, Any]:
    """What a statement did: (SQLSTATE, message, detail, hint) of its error, or ("ok", rows). Undone in any case."""
    connection.execute("begin")
    try:
        cursor = connection.execute(query, arguments or None)
        return "ok", cursor.rowcount if cursor.description is None else cursor.fetchall()
    except psycopg.Error as error:
        return error.sqlstate or "", (error.diag.message_primary, error.diag.message_detail, error.diag.message_hint)
    finally:
        connection.execute("rollback")
