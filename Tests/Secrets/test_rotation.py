"""Other master keys and data keys while workers run."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from databases import Database, Member
from processes import Worker
from sealed import Keeper, KeyedProvider, asked
from simulated import all_ended, ended


def master_keys(database: Database) -> list[str]:
    rows = database.execute(
        "select distinct master_key_id as id from ai.data_keys where destroyed_at is null order by 1"
    )
    return [row["id"] for row in rows]


@pytest.mark.parametrize("data_keys", [False, True])
def test_no_generation_fails_while_keys_are_rotated(
    database: Database,
    keeper: Keeper,
    provider: KeyedProvider,
    worker: Callable[..., Worker],
    data_keys: bool,
) -> None:
    model = keeper.shared_provider(provider)
    keeper.capture("all")
    members = [database.member() for _ in range(12)]
    for number, member in enumerate(members):
        keeper.set("OWN_API_KEY", f"sk-of-tenant-{number}", member.tenant_id)
    process = worker(database, env=keeper.env)
    apps = [database.connect(user=member) for member in members]

    def ask(app: object, times: int = 5) -> None:
        app.execute(
            "insert into ai.generations (prompt, model) select 'p', %s from generate_series(1, %s)", [model, times]
        )

    # Only some of the keys are opened before.
    for app in apps[:4]:
        ask(app)
    all_ended(database)
    for turn, name in enumerate(("second", "third", "fourth")):
        keeper.add_key(name)
        for app in apps[: 4 + 4 * turn]:
            ask(app)
        done = keeper.run("secrets", "rotate", "--json", *(["--data-keys"] if data_keys else []))
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert (result["master_key_id"], result["left"]) == (name, 0)
        assert result["rewrapped"] >= 12
        for app in apps:
            ask(app)
    all_ended(database)
    assert master_keys(database) == ["fourth"]
    # The old keys go; whoever starts now has the last one only.
    keeper.write(keeper.keys[0])
    assert process.terminate() == 0
    worker(database, env=keeper.env)
    for app in apps:
        ask(app)
    all_ended(database)
    rows = database.execute("select status, count(*) as n from ai.generations group by 1")
    assert [row["status"] for row in rows] == ["succeeded"], rows
    assert set(provider.keys) == {f"sk-of-tenant-{number}" for number in range(12)}
    assert database.execute("select distinct capture from ai.llm_calls") == [{"capture": "content"}]
    # What was sealed at the beginning still opens.
    for row in database.execute("select id from ai.generations order by id limit 3"):
        assert json.loads(keeper.show(row["id"])[0]["request"])["messages"][0]["content"] == "p"


def test_a_worker_that_makes_a_key_after_a_rotation_seals_it_with_the_new_master_key(
    database: Database, member: Member, keeper: Keeper, provider: KeyedProvider, worker: Callable[..., Worker]
) -> None:
    model = keeper.shared_provider(provider, secret=None)
    worker(database, env=keeper.env)
    keeper.add_key("second")
    keeper.capture("all")
    assert ended(database, asked(database, member, model))["status"] == "succeeded"
    assert master_keys(database) == ["second"]


def test_rotating_tells_of_keys_that_it_cannot_open_and_leaves_them(
    database: Database, member: Member, keeper: Keeper
) -> None:
    keeper.set("OWN_API_KEY", "sk-first", member.tenant_id)
    keeper.add_key("second")
    keeper.set("OWN_API_KEY", "sk-operator")
    keeper.add_key("third")
    keeper.write(*keeper.keys[:2])
    done = keeper.run("secrets", "rotate")
    assert done.returncode == 1
    assert "1 data keys are under master keys that are not at hand" in done.stderr
    assert master_keys(database) == ["first", "third"]
    keeper.write()
    assert keeper.run("secrets", "rotate").returncode == 0
    assert master_keys(database) == ["third"]


def test_a_broken_key_file_does_not_disturb_a_worker_that_runs(
    database: Database, member: Member, keeper: Keeper, provider: KeyedProvider, worker: Callable[..., Worker]
) -> None:
    model = keeper.shared_provider(provider)
    keeper.set("OWN_API_KEY", "sk-tenant", member.tenant_id)
    process = worker(database, env=keeper.env)
    keeper.write("half a li")
    keeper.capture("all")
    assert ended(database, asked(database, member, model))["status"] == "succeeded"
    keeper.file.unlink()
    assert ended(database, asked(database, member, model))["status"] == "succeeded"
    assert provider.keys == ["sk-tenant", "sk-tenant"]
    assert "half a li" not in process.text


def test_two_that_rotate_at_once_and_one_that_sets_meanwhile_leave_everything_readable(
    database: Database, keeper: Keeper, provider: KeyedProvider, worker: Callable[..., Worker]
) -> None:
    model = keeper.shared_provider(provider)
    members = [database.member() for _ in range(5)]
    for member in members:
        keeper.set("OWN_API_KEY", "sk-before", member.tenant_id)
    keeper.add_key("second")
    with ThreadPoolExecutor(4) as pool:
        rotations = [pool.submit(keeper.run, "secrets", "rotate", "--data-keys") for _ in range(3)]
        for member in members:
            keeper.set("OWN_API_KEY", f"sk-{member.user_id}", member.tenant_id)
    assert [one.result().returncode for one in rotations] == [0, 0, 0], [one.result().stderr for one in rotations]
    assert database.value("select count(*) from ai.data_keys where is_current") == 5
    worker(database, env=keeper.env)
    for member in members:
        provider.keys.clear()
        assert ended(database, asked(database, member, model))["status"] == "succeeded"
        assert provider.keys == [f"sk-{member.user_id}"]


def test_a_value_that_was_used_is_forgotten_with_its_key(
    database: Database, member: Member, keeper: Keeper, provider: KeyedProvider, worker: Callable[..., Worker]
) -> None:
    model = keeper.own_provider(member.tenant_id, provider)
    keeper.set("OWN_API_KEY", "sk-tenant", member.tenant_id)
    worker(database, env=keeper.env)
    assert ended(database, asked(database, member, model))["status"] == "succeeded"
    assert database.value("select ai.destroy_data_keys(%s)", member.tenant_id) == 1
    assert ended(database, asked(database, member, model))["error"]["code"] == "no_secret"
    # At the next need there is another key.
    keeper.set("OWN_API_KEY", "sk-anew", member.tenant_id)
    assert ended(database, asked(database, member, model))["status"] == "succeeded"
    assert provider.keys == ["sk-tenant", "sk-anew"]
