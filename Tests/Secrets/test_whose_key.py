"""Which key goes to which provider: a tenant's own, the operator's, or none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import databases
from databases import Database, Member
from processes import Worker
from sealed import Keeper, KeyedProvider, asked
from simulated import calls, ended


def test_each_tenant_s_calls_carry_its_own_key_and_the_others_carry_the_operator_s(
    database: Database, member: Member, keeper: Keeper, provider: KeyedProvider, worker: Callable[..., Worker]
) -> None:
    model = keeper.shared_provider(provider)
    other = database.member()
    keeper.set("OWN_API_KEY", "sk-operator-sealed")
    keeper.set("OWN_API_KEY", "sk-tenant-of-member", member.tenant_id)
    worker(database, env={**keeper.env, "OWN_API_KEY": "sk-environment"})
    for who, key in ((member, "sk-tenant-of-member"), (other, "sk-operator-sealed")):
        provider.keys.clear()
        assert ended(database, asked(database, who, model))["status"] == "succeeded"
        assert provider.keys == [key]


def test_a_shared_provider_without_a_sealed_key_gets_that_of_the_worker_s_environment(
    database: Database, member: Member, keeper: Keeper, provider: KeyedProvider, worker: Callable[..., Worker]
) -> None:
    model = keeper.shared_provider(provider)
    keeper.set("ANOTHER_API_KEY", "sk-another")
    keeper.set("OWN_API_KEY", "sk-of-somebody-else", database.tenant())
    worker(database, env={**keeper.env, "OWN_API_KEY": "sk-environment"})
    assert ended(database, asked(database, member, model))["status"] == "succeeded"
    assert provider.keys == ["sk-environment"]


def test_a_tenant_s_own_provider_gets_that_tenant_s_key_and_never_another(
    database: Database,
    member: Member,
    keeper: Keeper,
    provider: KeyedProvider,
    worker: Callable[..., Worker],
    tmp_path: Path,
) -> None:
    model = keeper.own_provider(member.tenant_id, provider)
    keeper.set("OWN_API_KEY", "sk-operator-sealed")
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "OWN_API_KEY").write_text("sk-file")
    worker(database, env={**keeper.env, "OWN_API_KEY": "sk-environment", "MARTLET_SECRETS_DIR": str(folder)})

    row = ended(database, refused := asked(database, member, model))
    assert (row["status"], row["error"]["class"], row["error"]["code"]) == ("failed", "unsendable", "no_secret")
    assert "OWN_API_KEY" in row["error"]["message"]
    assert [call["cost"] for call in calls(database, refused)] in ([0], [None])
    assert provider.keys == [], "nothing was sent"

    keeper.set("OWN_API_KEY", "sk-tenant", member.tenant_id)
    assert ended(database, asked(database, member, model))["status"] == "succeeded"
    assert provider.keys == ["sk-tenant"]

    # Removed again: at the next claim there is none.
    done = keeper.run("secrets", "remove", "OWN_API_KEY", "--tenant", str(member.tenant_id))
    assert done.returncode == 0, done.stderr
    assert ended(database, asked(database, member, model))["error"]["code"] == "no_secret"
    assert provider.keys == ["sk-tenant"]


def test_a_provider_that_became_another_tenant_s_gets_no_key_at_all(
    database: Database, member: Member, keeper: Keeper, provider: KeyedProvider, worker: Callable[..., Worker]
) -> None:
    model = keeper.shared_provider(provider)
    thief = database.member()
    keeper.set("OWN_API_KEY", "sk-of-member", member.tenant_id)
    keeper.set("OWN_API_KEY", "sk-operator-sealed")
    generation_id = asked(database, thief, model)
    database.execute("update ai.providers set tenant_id = %s where name = 'keyed'", member.tenant_id)
    worker(database, env={**keeper.env, "OWN_API_KEY": "sk-environment"})
    assert ended(database, generation_id)["status"] == "failed"
    assert provider.keys == []


def test_a_provider_of_a_tenant_at_a_private_address_is_not_called_unless_the_operator_allows_it(
    database: Database, member: Member, keeper: Keeper, provider: KeyedProvider, worker: Callable[..., Worker]
) -> None:
    model = keeper.own_provider(member.tenant_id, provider)
    keeper.set("OWN_API_KEY", "sk-tenant", member.tenant_id)
    database.execute("update ai.settings set private_providers = false")
    worker(database, env=keeper.env)
    row = ended(database, asked(database, member, model))
    assert (row["status"], row["error"]["code"]) == ("failed", "private_address")
    assert provider.keys == []
    database.execute("update ai.settings set private_providers = true")
    assert ended(database, asked(database, member, model))["status"] == "succeeded"


def test_a_new_value_is_used_at_once_by_a_worker_that_has_used_the_old_one(
    database: Database, member: Member, keeper: Keeper, provider: KeyedProvider, worker: Callable[..., Worker]
) -> None:
    model = keeper.shared_provider(provider)
    worker(database, env=keeper.env)
    for value in ("sk-value-one", "sk-value-two", "sk-value-three"):
        keeper.set("OWN_API_KEY", value, member.tenant_id)
        assert ended(database, asked(database, member, model))["status"] == "succeeded"
    assert provider.keys == ["sk-value-one", "sk-value-two", "sk-value-three"]


def test_what_is_wrong_with_one_tenant_s_key_is_not_held_against_the_provider(
    database: Database, member: Member, keeper: Keeper, worker: Callable[..., Worker]
) -> None:
    def refuse(key: str) -> tuple[int, dict[str, object]] | None:
        if key == "sk-without-money":
            return 429, {"error": {"message": "no money", "type": "insufficient_quota", "code": "insufficient_quota"}}
        return None if key == "sk-operator-good" else (401, {"error": {"message": "no", "code": "invalid_api_key"}})

    with KeyedProvider(refuse) as provider:
        model = keeper.shared_provider(provider)
        other = database.member()
        keeper.set("OWN_API_KEY", "sk-operator-good")
        worker(database, env=keeper.env)
        for value in ("sk-wrong-key", "sk-without-money"):
            keeper.set("OWN_API_KEY", value, member.tenant_id)
            for _ in range(15):
                asked(database, member, model)
            for row in database.execute("select id from ai.generations where finished_at is null"):
                assert ended(database, row["id"])["status"] == "failed"
        assert database.execute("select * from ai.breakers") == []
        assert database.execute("select * from ai.exhausted_accounts") == []
        assert ended(database, asked(database, other, model))["status"] == "succeeded"


def test_a_key_that_nobody_can_open_fails_the_call_and_says_which_master_key_is_missing(
    database: Database, member: Member, keeper: Keeper, provider: KeyedProvider, worker: Callable[..., Worker]
) -> None:
    model = keeper.shared_provider(provider)
    keeper.set("OWN_API_KEY", "sk-operator-sealed")
    worker(database, env={"OWN_API_KEY": "sk-environment"})
    error = ended(database, asked(database, member, model))["error"]
    assert (error["class"], error["code"]) == ("unsendable", "no_master_key")
    assert provider.keys == [], "what was to be sealed is not replaced by what lies about"


def test_a_sealed_value_that_was_moved_to_another_tenant_does_not_open(
    database: Database, member: Member, keeper: Keeper, provider: KeyedProvider, worker: Callable[..., Worker]
) -> None:
    model = keeper.shared_provider(provider)
    rich = database.tenant()
    keeper.set("OWN_API_KEY", "sk-of-the-rich", rich)
    keeper.set("OWN_API_KEY", "sk-of-member", member.tenant_id)
    database.execute(
        "update ai.secrets s set sealed = r.sealed, data_key_id = r.data_key_id from ai.secrets r"
        " where r.tenant_id = %s and s.tenant_id = %s",
        rich,
        member.tenant_id,
    )
    worker(database, env=keeper.env)
    assert ended(database, asked(database, member, model))["error"]["code"] == "sealed_secret"
    assert provider.keys == []


def test_a_vault_is_asked_for_what_is_not_sealed_here(
    database: Database, member: Member, keeper: Keeper, provider: KeyedProvider, worker: Callable[..., Worker]
) -> None:
    model = keeper.shared_provider(provider)
    database.execute(
        """
        create schema vault;
        create table vault.secrets
          (id uuid default gen_random_uuid(), name text, value text, updated_at timestamptz default now());
        create view vault.decrypted_secrets as
          select id, name, value as decrypted_secret, updated_at from vault.secrets;
        """
    )
    put = "insert into vault.secrets (name, value) values (%s, %s)"
    database.execute(put, "OWN_API_KEY", "sk-vault-operator")
    database.execute(put, "PRIVATE_THING", "not for workers")
    worker(database, env={"OWN_API_KEY": "sk-environment"})
    assert ended(database, asked(database, member, model))["status"] == "succeeded"
    database.execute(put, f"martlet/{member.tenant_id}/OWN_API_KEY", "sk-vault-tenant")
    assert ended(database, asked(database, member, model))["status"] == "succeeded"
    database.execute(
        "update vault.secrets set value = 'sk-vault-changed', updated_at = clock_timestamp()"
        " where name like 'martlet/%'"
    )
    assert ended(database, asked(database, member, model))["status"] == "succeeded"
    assert provider.keys == ["sk-vault-operator", "sk-vault-tenant", "sk-vault-changed"]
    # A tenant's own provider finds only what is the tenant's there.
    own = keeper.own_provider(member.tenant_id, provider)
    assert ended(database, asked(database, member, own))["status"] == "succeeded"
    other = database.member()
    theirs = keeper.own_provider(other.tenant_id, provider, name="theirs")
    assert ended(database, asked(database, other, theirs))["error"]["code"] == "no_secret"
    assert provider.keys[3:] == ["sk-vault-changed"]


def test_a_key_that_the_vault_cannot_open_is_of_no_concern_to_others(
    database: Database, member: Member, keeper: Keeper, provider: KeyedProvider, worker: Callable[..., Worker]
) -> None:
    model = keeper.shared_provider(provider)
    database.execute(
        """
        create schema vault;
        create table vault.secrets
          (id uuid default gen_random_uuid(), name text, value text, updated_at timestamptz default now());
        create function vault.opened(p_value text) returns text language plpgsql immutable as $$
          begin
            if p_value = 'damaged' then
              raise exception 'invalid ciphertext' using errcode = '22023';
            end if;
            return p_value;
          end $$;
        create view vault.decrypted_secrets as
          select id, name, vault.opened(value) as decrypted_secret, updated_at from vault.secrets;
        """
    )
    put = "insert into vault.secrets (name, value) values (%s, %s)"
    database.execute(put, "OWN_API_KEY", "sk-vault-operator")
    database.execute(put, f"martlet/{member.tenant_id}/OWN_API_KEY", "damaged")
    # Both are in one claim.
    refused, well = asked(database, member, model), asked(database, database.member(), model)
    worker(database)
    assert ended(database, well)["status"] == "succeeded"
    assert ended(database, refused)["error"]["code"] == "sealed_secret"
    assert provider.keys == ["sk-vault-operator"]


def test_a_vault_that_somebody_else_has_made_is_no_vault(database: Database) -> None:
    stranger = database.login()
    database.execute(f"create schema vault authorization {stranger.name}")
    database.connect(user=stranger).execute(
        "create view vault.decrypted_secrets as"
        " select gen_random_uuid() as id, 'OWN_API_KEY' as name, 'x' as decrypted_secret, now() as updated_at"
    )
    assert database.value("select ai.has_vault()") is False
    with databases.refused("42501"):
        database.connect(user=stranger).execute("select ai.has_vault()")
