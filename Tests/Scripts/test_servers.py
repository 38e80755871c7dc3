"""The scripts that start PostgreSQL leave nothing behind, and let nobody else in."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
import waiting

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = REPOSITORY / "scripts"


def said(*command: object) -> str:
    return subprocess.run(
        list(map(str, command)), check=True, capture_output=True, text=True, timeout=120
    ).stdout.strip()


@pytest.fixture
def servers() -> Iterator[Path]:
    """A folder for servers that PostgreSQL's user can read."""
    folder = Path(said(SCRIPTS / "state")) / f"run.{os.getpid()}.{time.monotonic_ns()}"
    folder.mkdir()
    yield folder
    for server in folder.iterdir():
        said(SCRIPTS / "server", server, "stop", "immediate")
    shutil.rmtree(folder)


def environment() -> dict[str, str]:
    """This one, without an operator's server: the embedded one is under test."""
    return {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}


def with_server(*command: str, **options: object) -> subprocess.Popen[str]:
    """`with-server 18 COMMAND`, which prints its URL and then does what the command says."""
    return subprocess.Popen(
        [SCRIPTS / "with-server", "18", *command],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
        **options,
    )


def is_gone(url: str) -> bool:
    parts = urlsplit(url)
    assert parts.port
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", parts.port)) != 0


def folders(run: subprocess.Popen[str]) -> list[Path]:
    """What this run of `with-server` keeps; other runs beside it have theirs."""
    return list(Path(said(SCRIPTS / "state")).glob(f"run.{run.pid}.*"))


@pytest.mark.parametrize("code", [0, 3])
def test_a_throw_away_server_is_gone_afterwards_and_the_commands_exit_code_is_kept(code: int) -> None:
    process = with_server("sh", "-c", f'echo "$MARTLET_TEST_DATABASE_URL"; exit {code}')
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert is_gone(output.strip())
    assert not folders(process)


def heed_signals() -> None:
    """A run in the background, or under nohup, ignores some signals, and what it starts inherits that."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_command_and_what_it_started_and_the_server(number: signal.Signals) -> None:
    process = with_server(
        "sh",
        "-c",
        'sleep 300 & echo "$MARTLET_TEST_DATABASE_URL"; echo $!; wait',
        preexec_fn=heed_signals,
    )
    with process:
        assert process.stdout
        url, child = process.stdout.readline().strip(), int(process.stdout.readline())
        assert not is_gone(url)
        process.send_signal(number)
        assert process.wait(30) == 130
    assert is_gone(url)
    waiting.until(lambda: not Path(f"/proc/{child}/fd").exists(), "the command's child to end")
    assert not folders(process)


def test_what_a_killed_run_left_is_removed_by_the_next() -> None:
    process = with_server("sh", "-c", 'echo "$MARTLET_TEST_DATABASE_URL"; echo $$; exec sleep 300')
    with process:
        assert process.stdout
        url, orphan = process.stdout.readline().strip(), int(process.stdout.readline())
        assert not is_gone(url)
        assert folders(process)
        process.kill()
    with_server("true").communicate(timeout=60)
    assert is_gone(url)
    assert not folders(process)
    os.kill(orphan, signal.SIGKILL)


def test_a_server_wants_its_password_and_listens_on_loopback_only(servers: Path) -> None:
    server = servers / "one"
    said(SCRIPTS / "server", server, "start", "18")
    url = said(SCRIPTS / "server", server, "url")
    with psycopg.connect(url) as connection:
        assert connection.execute("show listen_addresses").fetchone() == ("127.0.0.1",)
        assert connection.execute("show unix_socket_directories").fetchone() == ("",)
        assert connection.execute("show fsync").fetchone() == ("on",)
    parts = urlsplit(url)
    assert parts.password
    for wrong in (url.replace(parts.password, "wrong"), url.replace(f":{parts.password}", "")):
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(wrong, passfile="/dev/null")
    assert (server / "password").stat().st_mode & 0o077 == 0


def test_servers_beside_each_other_have_ports_of_their_own_even_when_one_is_taken(servers: Path) -> None:
    said(SCRIPTS / "server", servers / "one", "start", "18")
    first = said(SCRIPTS / "server", servers / "one", "url")
    said(SCRIPTS / "server", servers / "one", "stop")
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", urlsplit(first).port))
        taken.listen()
        said(SCRIPTS / "server", servers / "one", "start")
        second = said(SCRIPTS / "server", servers / "one", "url")
    assert urlsplit(second).port != urlsplit(first).port
    said(SCRIPTS / "server", servers / "two", "start", "16")
    third = said(SCRIPTS / "server", servers / "two", "url")
    for url, version in ((second, 18), (third, 16)):
        with psycopg.connect(url) as connection:
            assert connection.info.server_version // 10000 == version
    said(SCRIPTS / "server", servers / "one", "start")  # running already: nothing happens
    assert said(SCRIPTS / "server", servers / "one", "url") == second


def test_a_copied_clone_does_not_use_the_originals_databases(tmp_path: Path) -> None:
    original, copy, moved = (tmp_path / f"{name} clone" for name in ("original", "copied", "moved"))
    states = []
    try:
        shutil.copytree(SCRIPTS, original / "scripts")
        states.append(Path(said(original / "scripts/state")))
        (original / ".martlet/something").write_text("of the original")
        shutil.copytree(original, copy, symlinks=True)
        states.append(Path(said(copy / "scripts/state")))
        assert not (states[1] / "something").exists()
        assert (original / ".martlet/something").read_text() == "of the original"
        original.rename(moved)  # takes along what it has
        states.append(Path(said(moved / "scripts/state")))
        assert (states[2] / "something").exists()
    finally:  # as root they may be elsewhere than in the clones
        for state in states:
            shutil.rmtree(state, ignore_errors=True)


def test_the_name_of_the_database_is_put_into_any_form_of_url() -> None:
    for url, expected in {
        "postgresql://h": "postgresql://h/new",
        "postgres://u:p@h:5/old": "postgres://u:p@h:5/new",
        "postgresql://u@h/old?sslmode=require&x=/y": "postgresql://u@h/new?sslmode=require&x=/y",
        "postgresql:///old?host=/run/postgresql": "postgresql:///new?host=/run/postgresql",
    }.items():
        assert said(SCRIPTS / "with-database-name", url, "new") == expected
    refused = subprocess.run([SCRIPTS / "with-database-name", "host=h dbname=d", "new"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
