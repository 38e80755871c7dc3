"""`martlet secrets` and what `martlet doctor` says of sealed keys: what goes in, what comes out, what is refused."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from pathlib import Path

import pytest
import waiting
from databases import Database, Member
from sealed import Keeper

VALUE = "sk-planted-4e1d-value"


def test_a_value_comes_from_standard_input_or_a_file_and_goes_nowhere_else(
    database: Database, member: Member, keeper: Keeper, tmp_path: Path
) -> None:
    done = [keeper.run("secrets", "set", "OWN_API_KEY", given=VALUE + "\n")]
    (tmp_path / "value").write_text(VALUE + "\r\n")
    done.append(keeper.run("secrets", "set", "OWN_API_KEY", "--file", str(tmp_path / "value"), "--json"))
    tenant = database.value("select name from ai.tenants where id = %s", member.tenant_id)
    done.append(keeper.run("secrets", "set", "OWN_API_KEY", "--tenant", tenant, given=VALUE))
    assert [one.returncode for one in done] == [0, 0, 0], [one.stderr for one in done]
    assert json.loads(done[1].stdout) == {"name": "OWN_API_KEY", "version": 2}
    listed = keeper.run("secrets", "list", "--json")
    assert [
        (item["name"], item.get("tenant"), item["version"], item["master_key_id"]) for item in json.loads(listed.stdout)
    ] == [
        ("OWN_API_KEY", None, 2, "first"),
        ("OWN_API_KEY", tenant, 1, "first"),
    ]
    table = keeper.run("secrets", "list")
    assert tenant in table.stdout
    for text in (*(one.stdout + one.stderr for one in done), listed.stdout, table.stdout):
        assert VALUE not in text


def test_a_terminal_does_not_show_what_is_typed(database: Database, keeper: Keeper) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [keeper.martlet_bin, "secrets", "set", "OWN_API_KEY"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, **keeper.env, "DATABASE_URL": database.url},
    ) as process:
        os.close(theirs)
        shown = b""

        def prompted() -> bool:
            nonlocal shown
            shown += os.read(ours, 1024)
            return b"Value of OWN_API_KEY: " in shown

        waiting.until(prompted, "the prompt")
        os.write(ours, VALUE.encode() + b"\n")
        assert process.wait(30) == 0
        shown += os.read(ours, 1024)
    os.close(ours)
    assert VALUE.encode() not in shown
    assert database.value("select count(*) from ai.secrets") == 1


@pytest.mark.parametrize(
    ("arguments", "given", "code", "words"),
    [
        (["set", "path"], VALUE, 2, "A secret is named like"),
        (["set", "OWN_API_KEY", VALUE], "", 2, "Unexpected argument"),
        (["set", "OWN_API_KEY"], "", 1, "the value is empty"),
        (["set", "OWN_API_KEY"], "two\nlines", 1, "no part of a key"),
        (["set", "OWN_API_KEY"], "with space", 1, "no part of a key"),
        (["set", "OWN_API_KEY"], "x" * 20_000, 1, "more than 16384 bytes"),
        (["set", "OWN_API_KEY", "--tenant", "nobody"], VALUE, 1, "there is no tenant nobody"),
        (["set", "OWN_API_KEY", "--file", "/does/not/exist"], "", 1, "cannot be read"),
        (["remove", "OWN_API_KEY"], "", 1, "PT404"),
        (["new-key", "--id", "a b"], "", 2, "--id"),
    ],
)
def test_what_is_refused_says_why(keeper: Keeper, arguments: list[str], given: str, code: int, words: str) -> None:
    done = keeper.run("secrets", *arguments, given=given)
    assert done.returncode == code
    assert words in done.stderr


def test_only_the_owner_of_the_schema_keeps_secrets(database: Database, keeper: Keeper) -> None:
    admin = database.member(role="admin")
    for arguments in (["set", "OWN_API_KEY"], ["rotate"]):
        done = keeper.run("secrets", *arguments, given=VALUE, url=admin.url)
        assert done.returncode == 1
        assert "owner of the schema" in done.stderr or "42501" in done.stderr
    keeper.set("OWN_API_KEY", VALUE, admin.tenant_id)
    assert len(json.loads(keeper.run("secrets", "list", "--json", url=admin.url).stdout)) == 1
    assert keeper.run("secrets", "remove", "OWN_API_KEY", url=admin.url).returncode == 0
    assert json.loads(keeper.run("secrets", "list", "--json").stdout) == []


def test_master_keys_that_are_none_are_told_and_not_quoted(database: Database, keeper: Keeper) -> None:
    line = keeper.keys[0]
    for text, words in (
        (line.split(":")[1], "id:base64"),
        (line[:-6], "base64"),
        (f"{line}\n{line}", "two master keys"),
        ("", "no master key"),
    ):
        keeper.file.write_text(text)
        for command in (["secrets", "set", "OWN_API_KEY"], ["work", "--once"]):
            done = keeper.run(*command, given=VALUE)
            assert done.returncode == 1
            assert words in done.stderr
            assert line.split(":")[1][:12] not in done.stderr
    keeper.write()
    keeper.file.chmod(0o666)
    assert "chmod go-w" in keeper.run("secrets", "set", "OWN_API_KEY", given=VALUE).stderr
    none = keeper.run("secrets", "set", "OWN_API_KEY", given=VALUE, env={"MARTLET_MASTER_KEY_FILE": ""})
    assert (none.returncode, "new-key" in none.stderr) == (1, True)


def test_the_doctor_tells_which_keys_are_sealed_and_which_master_keys_are_missing(
    database: Database, member: Member, keeper: Keeper
) -> None:
    def said(check: str, **env: str) -> list[tuple[str, str]]:
        report = json.loads(keeper.run("doctor", "--json", env=env).stdout)
        return [(one["state"], one["message"]) for one in report["checks"] if one["check"] == check]

    ids = database.provider("keyed", "https://keyed.test/v1", secret="OWN_API_KEY")
    database.model(ids, "keyed/model")
    assert said("master keys") == []
    assert [state for state, _ in said("secrets")] == ["warn"]
    keeper.set("OWN_API_KEY", VALUE)
    assert said("secrets") == [("ok", "OWN_API_KEY for provider keyed, sealed")]
    assert [state for state, _ in said("master keys")] == ["ok"]
    keeper.add_key("second")
    assert "not the current one" in said("master keys")[0][1]
    keeper.write(keeper.keys[0])
    assert "does not have" in said("master keys")[0][1]
