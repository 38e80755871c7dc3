"""What tests of sealed keys and calls need: master keys, the command, a provider that notes the keys it is shown."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import echo
from databases import Database, Member
from simulated import QUICK

SECRET = "OWN_API_KEY"


class _Handler(echo._Handler, BaseHTTPRequestHandler):
    server: KeyedProvider

    def do_POST(self) -> None:
        key = self.headers.get("authorization", "").removeprefix("Bearer ")
        self.server.keys.append(key)
        refusal = self.server.refuse(key) if self.server.refuse else None
        if refusal is None:
            return super().do_POST()
        self.rfile.read(int(self.headers["content-length"]))
        status, body = refusal
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        return None


class KeyedProvider(echo.EchoProvider):
    """An echo that notes the key of each request; `refuse` gives status and body for those that it refuses."""

    def __init__(self, refuse: Callable[[str], tuple[int, dict[str, Any]] | None] | None = None) -> None:
        self.keys: list[str] = []
        self.refuse = refuse
        super().__init__()
        self.RequestHandlerClass: type[BaseHTTPRequestHandler] = _Handler


class Keeper:
    """The operator's master keys in a file, and `martlet secrets` with them."""

    def __init__(self, database: Database, martlet_bin: Path, folder: Path) -> None:
        self.database, self.martlet_bin = database, martlet_bin
        self.file = folder / "master-keys"
        self.keys: list[str] = []
        self.add_key("first")
        database.execute(f"update ai.settings set {', '.join(f'{name} = %s' for name in QUICK)}", *QUICK.values())
        database.execute("update ai.settings set private_providers = true")

    @property
    def env(self) -> dict[str, str]:
        return {"MARTLET_MASTER_KEY_FILE": str(self.file)}

    def add_key(self, name: str) -> None:
        """A new master key, before the others."""
        self.keys.insert(0, self.run("secrets", "new-key", "--id", name).stdout.strip())
        self.write()

    def write(self, *keys: str) -> None:
        """The file, with all keys or with these; renamed into place."""
        new = self.file.with_suffix(".new")
        new.touch(mode=0o600)
        new.write_text("".join(f"{key}\n" for key in keys or self.keys))
        new.rename(self.file)

    def run(
        self, *arguments: str, given: str = "", url: str | None = None, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs `martlet …` to its end, as the owner of the schema unless `url` is somebody else's."""
        environment = {**os.environ, **self.env, "DATABASE_URL": url or self.database.url, **(env or {})}
        return subprocess.run(
            [self.martlet_bin, *arguments],
            input=given,
            text=True,
            capture_output=True,
            timeout=60,
            check=False,
            env={name: value for name, value in environment.items() if value},
        )

    def set(self, name: str, value: str, tenant: uuid.UUID | None = None) -> None:
        """Seals a secret."""
        whose = ["--tenant", str(tenant)] if tenant else []
        done = self.run("secrets", "set", name, *whose, given=value + "\n")
        assert done.returncode == 0, done.stderr

    def show(self, generation_id: uuid.UUID, *arguments: str, url: str | None = None) -> list[dict[str, Any]]:
        """What `martlet calls show --json` opens."""
        done = self.run("calls", "show", str(generation_id), "--json", *arguments, url=url)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def shared_provider(self, provider: KeyedProvider, secret: str | None = SECRET, name: str = "keyed") -> str:
        """A provider for all tenants, and a model of it by the name that is returned."""
        self.database.model(self.database.provider(name, provider.base_url, secret=secret), f"{name}/model")
        return f"{name}/model"

    def own_provider(
        self, tenant: uuid.UUID, provider: KeyedProvider, secret: str | None = SECRET, name: str = "own"
    ) -> str:
        """A provider of the tenant's own."""
        ids = self.database.provider(name, provider.base_url, secret=secret, tenant_id=tenant)
        self.database.model(ids, f"{name}/model", tenant_id=tenant)
        return f"{name}/model"

    def capture(self, mode: str, tenant: uuid.UUID | None = None, percent: float = 100) -> None:
        """How calls are kept from now on."""
        self.database.execute(
            "insert into ai.capture_policies (tenant_id, mode, percent) values (%s, %s, %s)"
            " on conflict (tenant_id) do update set mode = excluded.mode, percent = excluded.percent",
            tenant,
            mode,
            percent,
        )


def asked(database: Database, member: Member, model: str, prompt: str = "hello", **columns: Any) -> uuid.UUID:
    """Asks as the member, and returns the generation's id."""
    columns = {"prompt": prompt, "model": model, **columns}
    names, places = ", ".join(columns), ", ".join(["%s"] * len(columns))
    statement = f"insert into ai.generations ({names}) values ({places}) returning id"
    row = database.connect(user=member).execute(statement, list(columns.values())).fetchone()
    assert row is not None
    return row["id"]
