"""What tests of files share: a bucket, and a database whose people make files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import simulated
from botocore.client import BaseClient
from databases import Database
from processes import Simulator

BUCKET = "files"


@dataclass
class Store:
    """A bucket of an S3 server; `key` is what a worker signs with."""

    endpoint: str
    key: str
    client: BaseClient

    def listing(self) -> list[str]:
        return sorted(entry["Key"] for entry in self.client.list_objects_v2(Bucket=BUCKET).get("Contents", []))

    def content(self, key: str) -> bytes:
        return self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()

    def put(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=content)


class Files:
    """A database with models that make files, and what its people do with them."""

    def __init__(self, database: Database, simulator: Simulator) -> None:
        self.database, self.simulator = database, simulator
        self.providers = simulated.Providers(database, simulator)
        self.member = database.member()
        self.person = database.connect(user=self.member)

    def model(self, kind: str, directives: str = "", **columns: Any) -> str:
        return self.providers.model(directives, kind=kind, rates='{"input": 1, "output": 1}', **columns)

    def use(self, store: Store, **columns: Any) -> None:
        columns = {"name": "s3", "endpoint": store.endpoint, "bucket": BUCKET, "secret": "FILES_S3_KEY", **columns}
        names = ", ".join(columns)
        marks = ", ".join(["%s"] * len(columns))
        self.database.execute(f"insert into ai.artifact_stores ({names}) values ({marks})", *columns.values())

    def ask(self, kind: str, model: str, *, prompt: str | None = None, messages: str | None = None, params: str = "{}"):
        row = self.person.execute(
            "insert into ai.generations (kind, model, prompt, messages, params) "
            "values (%s, %s, %s, %s, %s) returning id",
            (kind, model, prompt, messages, params),
        ).fetchone()
        return row["id"]

    def add(self, content: bytes, media_type: str, name: str | None = None):
        return self.person.execute("select ai.add_artifact(%s, %s, %s) as id", (content, media_type, name)).fetchone()[
            "id"
        ]

    def ended(self, generation_id: Any) -> dict[str, Any]:
        return simulated.ended(self.database, generation_id)

    def content(self, artifact: Any) -> bytes | None:
        return self.person.execute("select ai.artifact_content(%s) as c", (artifact,)).fetchone()["c"]
