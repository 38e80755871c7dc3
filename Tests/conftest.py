"""Fixtures for every pytest in this folder, and the rule that a test which did not run has failed.

`make test` sets the environment: MARTLET_TEST_DATABASE_URL (a server that tests may create databases on),
MARTLET_PG_VERSION (16, 18, or "given" for the operator's own) and MARTLET_BIN (the release binary).
"""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import checkups
import databases
import psycopg
import pytest
from databases import Database, Login, Member
from processes import Process, Simulator, Worker, flags

REPOSITORY = Path(__file__).resolve().parent.parent
# What workers send to the simulator. No log, table or notification may ever show it.
SIMULATOR_KEY = "sk-simulator-1f3b9c"
PROCESSES: pytest.StashKey[list[Process]] = pytest.StashKey()


def _environment(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise pytest.UsageError(
            f"{name} is not set: run the tests by `make test`, or scripts/with-server 18 scripts/test-python"
        )
    return value


@pytest.fixture(scope="session")
def server() -> str:
    """URL of the server's administrator; the database it names must not be changed."""
    return _environment("MARTLET_TEST_DATABASE_URL")


@pytest.fixture(scope="session")
def martlet_bin() -> Path:
    """The `martlet` program under test."""
    return Path(os.environ.get("MARTLET_BIN", REPOSITORY / ".build/release/martlet"))


@pytest.fixture(scope="session")
def template(server: str, martlet_bin: Path) -> Iterator[str]:
    """Name of a database as `martlet migrate` leaves it, to be copied."""
    with databases.temporary(server) as database:
        database.migrate(martlet_bin)
        yield database.name


@pytest.fixture
def database(server: str, template: str) -> Iterator[Database]:
    """A migrated database of this test's own."""
    with databases.temporary(server, template) as database:
        yield database


@pytest.fixture
def empty_database(server: str) -> Iterator[Database]:
    """A database of this test's own with nothing in it."""
    with databases.temporary(server) as database:
        yield database


@pytest.fixture
def member(database: Database) -> Member:
    """A member of a tenant, with a login."""
    return database.member()


@pytest.fixture
def processes(request: pytest.FixtureRequest) -> Iterator[list[Process]]:
    """What the test started; whatever still runs at its end is killed."""
    started: list[Process] = request.node.stash.setdefault(PROCESSES, [])
    yield started
    for process in started:
        if process.running:
            process.thaw()
            process.kill()


@pytest.fixture
def martlet(martlet_bin: Path, tmp_path: Path, processes: list[Process]) -> Callable[..., Process]:
    """Starts `martlet COMMAND --flag …` and returns the process. `env` adds to the environment."""

    def start(
        command: str,
        *arguments: object,
        kind: type[Process] = Process,
        env: dict[str, str] | None = None,
        **options: object,
    ) -> Process:
        log = tmp_path / f"{command}-{len(processes) + 1}.log"
        process = kind([martlet_bin, command, *arguments, *flags(options)], log, env or {})
        processes.append(process)
        return process

    return start


@pytest.fixture
def simulator(martlet: Callable[..., Process]) -> Simulator:
    """A provider simulator of this test's own."""
    process = martlet("simulate", kind=Simulator, port=0)
    process.base_url = process.announced_url()
    return process


@pytest.fixture
def worker(martlet: Callable[..., Process]) -> Callable[..., Worker]:
    """Starts `martlet work` on a database: `worker(database, concurrency=4)`.

    `env` adds to the environment; `login` is the role it logs in as, by default one in ai_worker; `ready=False`
    does not wait until it has registered.
    """

    def start(
        database: Database,
        *,
        env: dict[str, str] | None = None,
        login: Login | None = None,
        ready: bool = True,
        **options: object,
    ) -> Worker:
        url = (login or database.worker).url
        environment = {"DATABASE_URL": url, "SIM_API_KEY": SIMULATOR_KEY, **(env or {})}
        process = martlet("work", kind=Worker, env=environment, **options)
        if ready:
            process.says("working")
        return process

    return start


@pytest.fixture
def doctor(martlet_bin: Path) -> checkups.Doctor:
    """Runs `martlet doctor` on a database's URL; gives the exit code and the findings by check."""
    return functools.partial(checkups.check_up, martlet_bin)


@pytest.fixture
def dice(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers whose seed is printed when the test fails. MARTLET_SEED repeats a run."""
    seed = int(os.environ.get("MARTLET_SEED", random.SystemRandom().randrange(2**32)))
    print(f"MARTLET_SEED={seed}")
    return random.Random(seed)


def _must_run(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped or getattr(report, "wasxfail", None) is not None:
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} did not run: a skipped test is a failure here ({report.longrepr})"
        if hasattr(report, "wasxfail"):
            del report.wasxfail


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector):
    report = yield
    _must_run(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    report = yield
    _must_run(report)
    if report.failed:
        for process in item.stash.get(PROCESSES, []):
            if process.log.exists():
                title = f"{' '.join(process.command[1:])} (pid {process.pid})"
                report.sections.append((title, process.text[-20_000:]))
    return report


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """The line of a failure that says most: what was raised, or the last line there is."""
    crash = getattr(report.longrepr, "reprcrash", None)
    lines = (crash.message if crash else report.longreprtext).strip().splitlines() or ["no reason given"]
    return lines[0] if crash else lines[-1]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Adds this run to the sums that `make test` prints, and names what failed."""
    counts = os.environ.get("MARTLET_TEST_COUNTS")
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    is_part = hasattr(session.config, "workerinput")  # of xdist, which adds the parts up itself
    if counts and reporter and not is_part and not session.config.option.collectonly:
        passed, failed = (
            sum(len(reporter.stats.get(word, [])) for word in words) for words in (["passed"], ["failed", "error"])
        )
        with Path(counts).open("a") as out:
            out.write(f"{passed} {failed}\n")
            for report in [*reporter.stats.get("failed", []), *reporter.stats.get("error", [])]:
                out.write(f"failed: {_environment('MARTLET_PG_VERSION')}: {report.nodeid}: {_reason(report)}\n")


def pytest_report_header() -> str:
    """The server that this run uses, by version and without its password."""
    url = _environment("MARTLET_TEST_DATABASE_URL")
    with psycopg.connect(url) as connection:
        return f"PostgreSQL {connection.info.server_version} at {connection.info.host}:{connection.info.port}"
