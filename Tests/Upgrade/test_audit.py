"""What a dump restores has the audit log as it was, adds nothing to it by being restored, and goes on with it."""

from __future__ import annotations

from databases import Database, temporary
from installations import Programs

HEADS = "select chain::text, seq, encode(hash, 'hex') as hash from ai.audit_head()"


def test_a_restored_audit_log_is_sound_and_goes_on(database: Database, programs: Programs, server: str) -> None:
    tenant = database.tenant()
    admin = database.connect(user=database.member(tenant, role="admin"))
    admin.execute("insert into ai.limits (metric, period, amount) values ('cost', 'day', 1.50)")
    admin.execute("update ai.limits set amount = 0.10, soft = true")
    database.execute("update ai.settings set lease_ms = lease_ms + 1")
    heads = database.execute(HEADS)
    dump = programs.dump(database.url)
    with temporary(server) as restored:
        done = programs.psql(restored.url, stdin=dump)
        assert done.returncode == 0, done.stderr
        assert restored.execute(HEADS) == heads
        assert restored.execute("select * from ai.audit_verify()") == []
        restored.execute("update ai.settings set lease_ms = lease_ms + 1")
        for head in heads:  # what was known before the dump still holds
            assert restored.execute("select * from ai.audit_verify(%s, %s, decode(%s, 'hex'))", *head.values()) == []
        assert restored.value("select seq from ai.audit_head('00000000-0000-0000-0000-000000000000')") == 1 + next(
            head["seq"] for head in heads if head["chain"] == "00000000-0000-0000-0000-000000000000"
        )
