"""TensorZero's tables, from its own wheel.

The wheel has the gateway but not the command that sets its database up. The statements are in the library all the
same, each with its SHA-384, as the Rust library sqlx keeps migrations: so they are looked for by that pattern, and each
is what it was when it was built, or it is not found.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path

import psycopg

# Where each of its three parts notes what was applied, by a table that only that part makes.
_RECORDS = {
    "tensorzero_auth_api_key": "tensorzero_auth__sqlx_migrations",
    "prompt_template_configs": "tensorzero_stored_config__sqlx_migrations",
    "": "_sqlx_migrations",
}
_RECORD = """
create table if not exists {} (
  version bigint primary key, description text not null, installed_on timestamptz not null default now(),
  success boolean not null, checksum bytea not null, execution_time bigint not null
)
"""
_LOAD, _DYNAMIC, _RELA, _RELASZ, _RELATIVE = 1, 2, 7, 8, 8
# How one migration lies in memory, from the pointer to its checksum on.
_HASH_BYTES, _TO_SQL, _TO_VERSION, _APART = 48, 24, 40, 88


@dataclass(frozen=True)
class Migration:
    version: int
    sql: str
    checksum: bytes


class _Library:
    """An ELF file of 64 bits as far as it takes to follow its pointers."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        table, size, count = struct.unpack_from("<Q14xHH", content, 32)
        self._loaded: list[tuple[int, int, int]] = []
        dynamic = (0, 0)
        for place in range(table, table + size * count, size):
            kind, _, offset, address, _, length = struct.unpack_from("<IIQQQQ", content, place)
            if kind == _LOAD:
                self._loaded.append((address, offset, length))
            elif kind == _DYNAMIC:
                dynamic = (offset, length)
        tags = dict(struct.iter_unpack("<QQ", content[dynamic[0] : sum(dynamic)]))
        start = self.offset(tags[_RELA])
        assert start is not None
        entries = struct.iter_unpack("<QQq", content[start : start + tags[_RELASZ]])
        self.pointers = {place: target for place, kind, target in entries if kind & 0xFFFFFFFF == _RELATIVE}

    def offset(self, address: int) -> int | None:
        """Where in the file that is which is loaded to an address."""
        for start, offset, length in self._loaded:
            if start <= address < start + length:
                return offset + address - start
        return None

    def number(self, address: int) -> int:
        offset = self.offset(address)
        return struct.unpack_from("<q", self.content, offset)[0] if offset is not None else 0

    def bytes_behind(self, address: int) -> bytes:
        """Of a pointer with a length behind it."""
        offset = self.offset(self.pointers[address])
        length = self.number(address + 8)
        return self.content[offset : offset + length] if offset is not None and 0 < length < 1 << 20 else b""


def migrations(library: Path) -> list[list[Migration]]:
    """All that the library has, in the order in which it has them; one list for each of its parts."""
    elf = _Library(library.read_bytes())
    parts: list[list[Migration]] = []
    behind = 0
    for address in sorted(elf.pointers):
        if elf.number(address + 8) == _HASH_BYTES and address + _TO_SQL in elf.pointers:
            checksum, sql = elf.bytes_behind(address), elf.bytes_behind(address + _TO_SQL)
            if sql and hashlib.sha384(sql).digest() == checksum:
                if address != behind:
                    parts.append([])
                parts[-1].append(Migration(elf.number(address + _TO_VERSION), sql.decode(), checksum))
                behind = address + _APART
    return parts


def set_up(library: Path, url: str) -> list[int]:
    """Makes the tables. Gives the versions that could not be applied: what they need is not in this PostgreSQL."""
    failed = []
    with psycopg.connect(url, autocommit=True) as connection:
        for part in sorted(migrations(library), key=len, reverse=True):
            record = next(name for word, name in _RECORDS.items() if any(word in one.sql for one in part))
            connection.execute(_RECORD.format(record))
            for migration in part:
                try:
                    with connection.transaction():
                        connection.execute(migration.sql)
                except psycopg.Error:
                    failed.append(migration.version)
                connection.execute(
                    f"insert into {record} values (%s, 'bench', now(), true, %s, 0)",
                    [migration.version, migration.checksum],
                )
    return failed
