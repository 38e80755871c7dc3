"""API keys for the members of a test."""

from __future__ import annotations

from typing import Any

from databases import Database, Member


def api_key(database: Database, member: Member, permissions: list[str] | None = None) -> dict[str, Any]:
    """A new API key of this member, made by the operator: {"id", "key"}."""
    return database.execute(
        "select * from ai.create_api_key('test', %s, %s, p_tenant_id => %s)",
        member.user_id,
        permissions,
        member.tenant_id,
    )[0]
