"""The worker talks to nobody who cannot prove to be the one."""

from __future__ import annotations

import contextlib
import ssl
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from certificates import Authority, TLSProvider, self_signed
from databases import Database, Member
from processes import Process, Worker
from sealed import asked
from simulated import QUICK, calls, ended


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """An authority that the worker is told to trust."""
    return Authority(tmp_path)


def old_protocol(context: ssl.SSLContext) -> ssl.SSLContext:
    """TLS 1.1, and nothing newer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    return context


def newest(context: ssl.SSLContext, version: ssl.TLSVersion) -> ssl.SSLContext:
    context.minimum_version = context.maximum_version = version
    return context


def test_only_a_certificate_of_a_known_authority_for_this_host_and_time_is_accepted(
    database: Database, member: Member, worker: Callable[..., Worker], authority: Authority, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path, "stranger")
    here = "DNS:localhost"
    good = ""
    cases = [
        # The host that is called, the certificate, and what is said of it; nothing where it is good.
        ("localhost", authority.issue("good", here), good),
        ("127.0.0.1", authority.issue("address", "IP:127.0.0.1"), good),
        ("localhost", newest(authority.issue("tls12", here), ssl.TLSVersion.TLSv1_2), good),
        ("localhost", newest(authority.issue("tls13", here), ssl.TLSVersion.TLSv1_3), good),
        ("localhost", authority.issue("other", "DNS:other.test"), "no alternative certificate subject name matches"),
        ("localhost", authority.issue("wildcard", "DNS:*.localhost"), "no alternative certificate subject name"),
        ("127.0.0.1", authority.issue("name", here), "no alternative certificate subject name matches"),
        ("localhost", authority.issue("expired", here, days=-1), "certificate has expired"),
        ("localhost", self_signed(tmp_path, "self", here), "self-signed certificate"),
        ("localhost", stranger.issue("unknown", here), "unable to get local issuer certificate"),
        ("localhost", authority.issue("purpose", here, extensions="extendedKeyUsage=clientAuth"), "certificate"),
        ("localhost", old_protocol(authority.issue("old", here)), "tls"),
    ]
    settings = {**QUICK, "max_attempts": 1}
    database.execute("delete from ai.breaker_settings")
    database.execute(f"update ai.settings set {', '.join(f'{name} = %s' for name in settings)}", *settings.values())
    process = worker(database, env={"MARTLET_CA_FILE": str(authority.certificate)})
    with contextlib.ExitStack() as stack:
        generations = []
        for number, (host, context, words) in enumerate(cases):
            provider = stack.enter_context(TLSProvider(context))
            database.model(
                database.provider(f"p{number}", provider.url(host), secret="SIM_API_KEY"), f"p{number}/model"
            )
            generations.append((asked(database, member, f"p{number}/model"), provider, words))
        for generation_id, provider, words in generations:
            row = ended(database, generation_id)
            if not words:
                assert row["status"] == "succeeded", row["error"]
                continue
            assert row["status"] == "failed", words
            assert row["error"]["class"] == "unreachable", row["error"]
            assert words in row["error"]["message"].lower(), row["error"]
            # Nothing was said before the other had proved who it is.
            assert provider.bodies == []
            assert [(call["cost"], call["input_tokens"]) for call in calls(database, generation_id)] == [(0, 0)]
    assert process.running


def test_a_private_authority_is_trusted_only_where_the_operator_says_so(
    database: Database, member: Member, worker: Callable[..., Worker], authority: Authority
) -> None:
    settings = {**QUICK, "max_attempts": 1}
    database.execute(f"update ai.settings set {', '.join(f'{name} = %s' for name in settings)}", *settings.values())
    with TLSProvider(authority.issue("good", "DNS:localhost")) as provider:
        database.model(database.provider("private", provider.url("localhost")), "private/model")
        worker(database)
        row = ended(database, asked(database, member, "private/model"))
        assert (row["status"], row["error"]["class"]) == ("failed", "unreachable")
        assert "unable to get local issuer certificate" in row["error"]["message"]


def test_an_authority_that_cannot_be_read_is_a_wrong_call(
    database: Database, martlet: Callable[..., Process], tmp_path: Path
) -> None:
    process = martlet("work", env={"DATABASE_URL": database.url, "MARTLET_CA_FILE": str(tmp_path / "none.pem")})
    assert process.wait() == 2
    assert "MARTLET_CA_FILE" in process.text


def test_a_file_without_a_certificate_is_a_wrong_call(
    database: Database, martlet: Callable[..., Process], tmp_path: Path
) -> None:
    (tmp_path / "key.pem").write_text("-----BEGIN PRIVATE KEY-----")
    for wrong in (tmp_path, tmp_path / "key.pem"):
        process = martlet("work", env={"DATABASE_URL": database.url, "MARTLET_CA_FILE": str(wrong)})
        assert process.wait() == 2
        assert "MARTLET_CA_FILE" in process.text
