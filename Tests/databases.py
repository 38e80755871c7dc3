"""A database of a test's own, and the people in it."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row

_numbers = itertools.count(1)


def fresh_name(what: str) -> str:
    """A name that no other test, run or clone uses: databases and roles belong to the whole server."""
    return f"martlet_test_{what}_{os.getpid()}_{next(_numbers)}_{secrets.token_hex(3)}"


def with_database(url: str, name: str) -> str:
    """`url`, leading to the database `name`."""
    return urlunsplit(urlsplit(url)._replace(path="/" + quote(name)))


def with_user(url: str, user: str, password: str) -> str:
    """`url`, for another user."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{quote(user)}:{quote(password)}@{host}"))


@dataclass
class Login:
    """A login role of the server, made for a test."""

    name: str
    password: str
    url: str


@dataclass
class Member:
    """A member of a tenant, who can log in to the database."""

    tenant_id: uuid.UUID
    user_id: str
    login: Login

    @property
    def url(self) -> str:
        return self.login.url


@dataclass
class Database:
    """A migrated database that exists for one test. Connections are in autocommit mode and return rows as dicts."""

    server: str
    name: str
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _roles: list[str] = field(default_factory=list)
    _admin: psycopg.Connection[dict[str, Any]] | None = None
    _worker: Login | None = None

    @property
    def url(self) -> str:
        """For the server's administrator, who made the schema."""
        return with_database(self.server, self.name)

    @property
    def superuser(self) -> psycopg.Connection[dict[str, Any]]:
        """One connection as the administrator, kept for the whole test; a new one if it broke."""
        if self._admin is None or self._admin.closed or self._admin.broken:
            self._admin = self.connect()
        return self._admin

    def connect(
        self, role: str | None = None, user: Member | Login | None = None, **options: Any
    ) -> psycopg.Connection[dict[str, Any]]:
        """A new connection, as `user` or as the administrator, who may `set role` first. Closed after the test."""
        url = user.url if user else self.url
        options = {"autocommit": True, "row_factory": dict_row, **options}
        connection = self._stack.enter_context(contextlib.closing(psycopg.connect(url, **options)))
        if role:
            connection.execute(sql.SQL("set role {}").format(sql.Identifier(role)))
        return connection

    def execute(self, query: str, *arguments: Any) -> list[dict[str, Any]]:
        """Runs a statement as the administrator."""
        cursor = self.superuser.execute(query, arguments or None)
        return cursor.fetchall() if cursor.description else []

    def value(self, query: str, *arguments: Any) -> Any:
        """The first column of the first row."""
        return next(iter(self.execute(query, *arguments)[0].values()))

    def login(self, *groups: str) -> Login:
        """A new login role that is in these group roles."""
        name, password = fresh_name("role"), secrets.token_hex(16)
        self._roles.append(name)
        self.superuser.execute(
            sql.SQL("create role {} login password {}").format(sql.Identifier(name), sql.Literal(password))
        )
        for group in groups:
            self.superuser.execute(sql.SQL("grant {} to {}").format(sql.Identifier(group), sql.Identifier(name)))
        return Login(name, password, with_user(self.url, name, password))

    @property
    def worker(self) -> Login:
        """The login role that this database's workers use."""
        if self._worker is None:
            self._worker = self.login("ai_worker")
        return self._worker

    def tenant(self, name: str | None = None) -> uuid.UUID:
        """A new tenant."""
        return self.value("insert into ai.tenants (name) values (%s) returning id", name or fresh_name("tenant"))

    def member(self, tenant_id: uuid.UUID | None = None, user_id: str | None = None, role: str = "user") -> Member:
        """A new member of `tenant_id` (or of a new tenant) with a login role that is bound to it."""
        tenant_id = tenant_id or self.tenant()
        user_id = user_id or f"user-{next(_numbers)}"
        login = self.login(f"ai_{role}")
        self.execute(
            "insert into ai.members (tenant_id, user_id, role) values (%s, %s, %s) on conflict do nothing",
            tenant_id,
            user_id,
            role,
        )
        self.execute(
            "insert into ai.role_bindings (role_name, tenant_id, user_id) values (%s, %s, %s)",
            login.name,
            tenant_id,
            user_id,
        )
        return Member(tenant_id, user_id, login)

    def provider(self, name: str, base_url: str, dialect: str = "openai", **columns: Any) -> int:
        """A provider that everybody shares, without a secret."""
        columns = {"name": name, "dialect": dialect, "base_url": base_url, **columns}
        return self._insert("ai.providers", columns)

    def model(self, provider_id: int, name: str, wire_name: str | None = None, **columns: Any) -> int:
        """A model that everybody shares, with a price of 3 and 15 per million tokens."""
        rates = columns.pop("rates", '{"input": 3, "cache_read": 0.3, "cache_write": 3.75, "output": 15}')
        columns = {"provider_id": provider_id, "name": name, "wire_name": wire_name or name, **columns}
        model_id = self._insert("ai.models", columns)
        if rates:
            self.execute("insert into ai.prices (model_id, rates) values (%s, %s)", model_id, rates)
        return model_id

    def _insert(self, table: str, columns: dict[str, Any]) -> int:
        statement = sql.SQL("insert into {} ({}) values ({}) returning id").format(
            sql.Identifier(*table.split(".")),
            sql.SQL(", ").join(map(sql.Identifier, columns)),
            sql.SQL(", ").join(sql.Placeholder() * len(columns)),
        )
        row = self.superuser.execute(statement, list(columns.values())).fetchone()
        assert row is not None
        return row["id"]

    def forget_connections(self) -> None:
        """After the server was away: what was open is not."""
        self._stack.close()
        self._admin = None

    def migrate(self, martlet_bin: Path) -> None:
        """Brings the schema into it, as `martlet migrate` does."""
        environment = {**os.environ, "DATABASE_URL": self.url}
        subprocess.run([martlet_bin, "migrate"], env=environment, check=True, timeout=120)

    def close(self) -> None:
        """Closes what is open and drops the database and the roles."""
        self._stack.close()
        with psycopg.connect(self.server, autocommit=True) as server:
            server.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(self.name)))
            for role in self._roles:
                server.execute(sql.SQL("drop role if exists {}").format(sql.Identifier(role)))


@contextlib.contextmanager
def refused(sqlstate: str) -> Iterator[None]:
    """Expects the block to be refused by the database with this SQLSTATE."""
    with pytest.raises(psycopg.Error) as caught:
        yield
    assert caught.value.sqlstate == sqlstate, f"{caught.value.sqlstate}: {caught.value}"


def create_database(server: str, name: str, template: str | None = None) -> None:
    """Creates a database, empty or as a copy of `template`."""
    with psycopg.connect(server, autocommit=True) as connection:
        statement = sql.SQL("create database {}").format(sql.Identifier(name))
        if template:
            statement += sql.SQL(" template {}").format(sql.Identifier(template))
        connection.execute(statement)


@contextlib.contextmanager
def temporary(server: str, template: str | None = None) -> Iterator[Database]:
    """A database for as long as the block runs; a copy of `template`, or empty."""
    database = Database(server, fresh_name("db"))
    create_database(server, database.name, template)
    try:
        yield database
    finally:
        database.close()
