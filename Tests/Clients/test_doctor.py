"""`martlet doctor`: it finds what is wrong, and nothing where nothing is."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import waiting
from databases import Database, Member
from processes import Worker

Doctor = Callable[..., tuple[int, dict[str, list[dict[str, Any]]]]]


@pytest.fixture
def doctor(martlet_bin: Path) -> Doctor:
    """Runs `martlet doctor --json`; gives the exit code and the findings by check."""

    def run(url: str, **env: str) -> tuple[int, dict[str, list[dict[str, Any]]]]:
        environment = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
        done = subprocess.run(
            [martlet_bin, "doctor", "--json", "--database-url", url],
            env={**environment, **env},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.stderr == ""
        report = json.loads(done.stdout)
        assert report["ok"] == (done.returncode == 0)
        findings: dict[str, list[dict[str, Any]]] = {}
        for finding in report["checks"]:
            findings.setdefault(finding["check"], []).append(finding)
        return done.returncode, findings

    return run


def states(findings: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    return {check: found[0]["state"] for check, found in findings.items()}


def bind_the_owner(database: Database) -> None:
    database.execute(
        "insert into ai.role_bindings (role_name, tenant_id, user_id) values (session_user, %s, 'owner')",
        database.value(
            "insert into ai.members (tenant_id, user_id, role) values (%s, 'owner', 'admin') returning tenant_id",
            database.tenant(),
        ),
    )


def test_a_healthy_installation_has_no_findings(
    database: Database, worker: Callable[..., Worker], doctor: Doctor
) -> None:
    bind_the_owner(database)
    worker(database)
    waiting.until(lambda: database.value("select count(*) from ai.workers"), "the worker to register")
    code, findings = doctor(database.url)
    assert set(states(findings).values()) == {"ok"}, findings
    assert code == 0
    assert database.value("select status from ai.generations") == "succeeded"


def test_no_worker_is_a_failure_with_a_hint(database: Database, doctor: Doctor) -> None:
    code, findings = doctor(database.url)
    assert code == 1
    assert states(findings)["worker"] == "fail"
    assert "martlet work" in findings["worker"][0]["hint"]
    assert states(findings)["round trip"] == "warn"


def test_an_app_role_is_told_what_it_may_not_see(
    database: Database, member: Member, worker: Callable[..., Worker], doctor: Doctor
) -> None:
    worker(database)
    waiting.until(lambda: database.value("select count(*) from ai.workers"), "the worker to register")
    code, findings = doctor(member.url)
    assert code == 0, findings
    assert states(findings)["identity"] == "ok"
    assert states(findings)["round trip"] == "ok"
    assert states(findings)["schema"] == "warn"
    assert states(findings)["worker"] == "warn"


@pytest.mark.parametrize(
    ("damage", "check", "named"),
    [
        ("alter table ai.members disable row level security", "rls", "members"),
        ("create table ai.extra (x int)", "rls", "extra"),
        ("grant select on ai.tenants to public", "rls", "tenants"),
        ("create policy open on ai.members using (true)", "rls", "members"),
        ("alter function ai.whoami() reset search_path", "functions", "whoami"),
        ("grant execute on function ai.worker_stop(uuid) to public", "functions", "worker_stop"),
        ("insert into ai.migrations (version, name, checksum, door) values ('29990101000000', 'x', 'x', 'martlet')",
         "schema", "29990101000000"),
        ("update ai.migrations set checksum = 'x' where version = 'sql'", "schema", "sql"),
    ],
)  # fmt: skip
def test_damage_is_found_and_named(database: Database, doctor: Doctor, damage: str, check: str, named: str) -> None:
    assert states(doctor(database.url)[1])[check] == "ok"
    database.execute(damage)
    code, findings = doctor(database.url)
    assert code == 1
    assert findings[check][0]["state"] == "fail"
    assert named in findings[check][0]["message"]
    assert findings[check][0]["hint"]


def test_missing_prices_and_secrets_are_warnings(database: Database, doctor: Doctor, tmp_path: Path) -> None:
    variable = "EXAMPLE_API_KEY"
    provider = database.provider("p", "https://api.example.org/v1", secret=variable)
    database.model(provider, "p/free", rates=None)
    _, findings = doctor(database.url)
    assert states(findings)["prices"] == "warn"
    assert "p/free" in findings["prices"][0]["message"]
    assert states(findings)["secrets"] == "warn"
    assert "EXAMPLE_API_KEY" in findings["secrets"][0]["message"]
    _, findings = doctor(database.url, EXAMPLE_API_KEY="hunter2")
    assert states(findings)["secrets"] == "ok"
    assert "hunter2" not in json.dumps(findings)
    (tmp_path / "EXAMPLE_API_KEY").write_text("hunter2\n")
    _, findings = doctor(database.url, MARTLET_SECRETS_DIR=str(tmp_path))
    assert states(findings)["secrets"] == "ok"


def test_an_empty_database_is_told_to_be_migrated(empty_database: Database, doctor: Doctor) -> None:
    code, findings = doctor(empty_database.url)
    assert code == 1
    assert findings["schema"][0]["hint"] == "martlet migrate"


def test_an_unreachable_database_is_the_only_finding(doctor: Doctor) -> None:
    code, findings = doctor("postgresql://me:hunter2@127.0.0.1:1/x")
    assert code == 1
    assert list(findings) == ["connection"]
    assert findings["connection"][0]["hint"]
    assert "hunter2" not in json.dumps(findings)
