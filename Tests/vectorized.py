"""An app whose table is vectorized, and what to compare its embeddings with."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import psycopg
from databases import Database, Member
from protocol import PlainWorker


def vector(text: str) -> list[int]:
    """Stands for the embedding of a text: four numbers that another text hardly has."""
    return [1 + byte for byte in hashlib.sha256(text.encode()).digest()[:4]]


@dataclass
class App:
    """A member with a table `shop.notes (id, owner, body)`, and two models whose vectors may have any size."""

    database: Database
    member: Member = field(init=False)

    def __post_init__(self) -> None:
        self.member = self.database.member()
        self.database.execute(f'create schema shop authorization "{self.member.login.name}"')
        self.connection = self.connect()
        self.execute("create table shop.notes (id integer primary key, owner name, body text)")
        local = self.database.value("select id from ai.providers where name = 'local'")
        for name in ("test/one", "test/two"):
            self.database.model(local, name, kind="embedding", rates=None)

    def connect(self, **options: Any) -> psycopg.Connection[dict[str, Any]]:
        return self.database.connect(user=self.member, **options)

    def execute(self, query: str, *arguments: Any) -> list[dict[str, Any]]:
        cursor = self.connection.execute(query, arguments or None)
        return cursor.fetchall() if cursor.description else []

    def vectorize(self, model: str = "test/one") -> int:
        return self.execute("select ai.vectorize('shop.notes', '{body}', %s, format => 'plain') as rows", model)[0][
            "rows"
        ]

    def progress(self) -> dict[str, Any]:
        rows = self.execute("select * from ai.vectorize_progress('notes') where status = 'current'")
        return rows[0]

    def expected(self) -> list[tuple[str, str]]:
        """Key and text of the rows that have a text."""
        rows = self.execute("select id::text as key, body from shop.notes where btrim(body) <> '' order by id::text")
        return [(row["key"], row["body"]) for row in rows]

    def embedded(self) -> list[tuple[str, str, str, Any]]:
        """Key, text, state and vector of everything that is kept, old texts and rows of other models included."""
        rows = self.database.execute(
            "select split_part(r.row_key, '/', 2) as key, r.content, r.state, r.embedding::text as embedding"
            " from ai.vectorized_rows r order by 1, r.ref"
        )
        return [
            (row["key"], row["content"], row["state"], row["embedding"] and json.loads(row["embedding"]))
            for row in rows
        ]

    def upkeep(self) -> int:
        return self.database.value("select ai.fill_vectorizers(now())")


class Embedder(PlainWorker):
    """A worker that embeds by `vector`, when it is told to."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.connection.execute("set lock_timeout = '5s'")
        self.connection.execute("set statement_timeout = '60s'")
        self.held: list[dict[str, Any]] = []

    def take(self, limit: int = 64) -> list[str]:
        """Claims, and returns the texts."""
        *calls, _ = self._rows("select * from ai.worker_claim(%s, %s, null)", self.id, limit)
        self.held += calls
        return [text for call in calls for text in call["request"]["input"]]

    def answer(self, calls: list[dict[str, Any]] | None = None) -> list[str]:
        """Settles what it holds (or of that these calls), and returns what became of it."""
        calls = self.held if calls is None else calls
        self.held = [one for one in self.held if one not in calls]
        results = [
            {
                "id": str(call["generation_id"]),
                "attempt": call["attempt"],
                "outcome": "succeeded",
                "sent": True,
                "embeddings": [vector(text) for text in call["request"]["input"]],
            }
            for call in calls
        ]
        return [
            row["result"] for row in self._rows("select * from ai.worker_settle(%s, %s)", self.id, json.dumps(results))
        ]

    def drain(self) -> int:
        """Embeds until nothing is queued, and returns the number of texts."""
        count = 0
        while True:
            texts = self.take()
            if not texts:
                return count
            count += len(texts)
            self.answer()
