"""The worker is an ordinary process of an ordinary user, which keeps its keys to itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SIMULATOR_KEY
from databases import Database, Member
from processes import Process, Simulator, Worker
from sealed import asked
from simulated import Providers, ended

AS_USER = Path(__file__).resolve().parents[2] / "scripts" / "as-database-user"
# What another process of the same user tries: each line is one thing that it could read, or how it failed.
SNOOP = """
import ctypes, ctypes.util, os, sys
pid = int(sys.argv[1])
for name in ("environ", "mem", "maps", "auxv", "io", "stack", "syscall", "fd", "cwd", "exe"):
    path = f"/proc/{pid}/{name}"
    try:
        if name == "fd":
            os.listdir(path)
        elif name in ("cwd", "exe"):
            os.readlink(path)
        else:
            open(path, "rb").read(64)
        print("read", name)
    except OSError as error:
        print("refused", name, error.errno)
libc = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
print("read trace" if libc.ptrace(16, pid, 0, 0) == 0 else "refused trace")
class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
local = Vector(ctypes.addressof(ctypes.create_string_buffer(8)), 8)
done = libc.process_vm_readv(pid, ctypes.byref(local), 1, ctypes.byref(local), 1, 0)
print("refused" if done < 0 else "read", "memory")
"""


@pytest.fixture
def plain_worker(
    database: Database, martlet_bin: Path, tmp_path: Path, processes: list[Process]
) -> Callable[..., Worker]:
    """Starts a worker as a user with no rights on this machine."""

    def start(*arguments: str, env: dict[str, str] | None = None) -> Worker:
        environment = {"SIM_API_KEY": SIMULATOR_KEY, **(env or {"DATABASE_URL": database.worker.url})}
        process = Worker([AS_USER, martlet_bin, "work", *arguments], tmp_path / "plain.log", environment)
        processes.append(process)
        process.says("working")
        return process

    return start


def child(process: Process) -> int:
    """The worker itself, where it was started through `runuser`."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(children[0]) if children else process.pid


def as_user(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([AS_USER, *command], capture_output=True, text=True, check=False, timeout=60)


def test_an_ordinary_user_without_any_right_on_the_machine_is_enough(
    database: Database, member: Member, simulator: Simulator, plain_worker: Callable[..., Worker]
) -> None:
    model = Providers(database, simulator).model("answer=all+is+well")
    process = plain_worker()
    status = Path(f"/proc/{child(process)}/status").read_text()
    uid, gid = (
        next(line for line in status.splitlines() if line.startswith(name)).split()[1] for name in ("Uid", "Gid")
    )
    assert uid != "0"
    assert gid != "0"
    assert ended(database, asked(database, member, model))["status"] == "succeeded"
    assert "root" not in process.text
    os.kill(child(process), signal.SIGTERM)
    assert process.wait() in (0, 143)
    assert "stopped" in process.text


def test_processes_of_the_same_user_learn_nothing_of_it(
    database: Database, member: Member, simulator: Simulator, plain_worker: Callable[..., Worker]
) -> None:
    model = Providers(database, simulator).model("answer=all+is+well")
    process = plain_worker()
    assert ended(database, asked(database, member, model))["status"] == "succeeded"
    pid = child(process)
    seen = as_user(sys.executable if os.geteuid() else "/usr/bin/python3", "-c", SNOOP, str(pid))
    lines = seen.stdout.splitlines()
    assert len(lines) == 12, seen
    assert [line for line in lines if not line.startswith("refused")] == []
    # What everybody may see of every process says nothing.
    shown = (Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/comm").read_bytes()).decode()
    assert SIMULATOR_KEY not in shown
    assert database.worker.password not in shown
    limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
    core = next(line for line in limits if line.startswith("Max core file size"))
    assert core.split()[4:6] == ["0", "0"]


def test_a_password_on_the_command_line_is_overwritten_and_complained_of(
    database: Database, plain_worker: Callable[..., Worker]
) -> None:
    process = plain_worker("--database-url", database.worker.url, env={"DATABASE_URL": ""})
    shown = Path(f"/proc/{child(process)}/cmdline").read_bytes().decode()
    assert database.worker.password not in shown
    assert f"{database.worker.name}:{'x' * len(database.worker.password)}@" in shown
    assert "warning a password was on the command line" in process.text
    assert database.worker.password not in process.text


def test_root_is_told_once_that_it_need_not_be(database: Database, worker: Callable[..., Worker]) -> None:
    process = worker(database)
    assert process.terminate() == 0
    assert process.text.count("running as root") == (1 if os.geteuid() == 0 else 0)


def test_a_proxy_of_the_environment_is_not_followed(
    database: Database, member: Member, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    model = Providers(database, simulator).model("answer=directly")
    nowhere = "http://127.0.0.1:9"
    process = worker(database, env={"http_proxy": nowhere, "https_proxy": nowhere, "ALL_PROXY": nowhere})
    row = ended(database, asked(database, member, model))
    assert (row["status"], row["output"]) == ("succeeded", "directly")
    assert "MARTLET_PROXY" in process.text


def test_a_proxy_that_is_none_is_a_wrong_call_and_not_quoted(
    database: Database, martlet: Callable[..., Process]
) -> None:
    env = {"DATABASE_URL": database.url, "MARTLET_PROXY": "http://ann:s3cret#x@proxy.internal:3128"}
    process = martlet("work", env=env)
    assert process.wait() == 2
    assert "MARTLET_PROXY" in process.text
    assert "s3cret" not in process.text


def test_an_empty_variable_is_none_and_a_wrong_one_is_a_wrong_call(
    database: Database, martlet: Callable[..., Process]
) -> None:
    empty = dict.fromkeys(("MARTLET_LOG_LEVEL", "MARTLET_LOG_FORMAT", "MARTLET_NAME", "MARTLET_CONCURRENCY"), "")
    env = {"DATABASE_URL": database.worker.url, **empty}
    assert martlet("work", env={**env, "MARTLET_ONCE": "yes"}).wait() == 0
    assert database.value("select name from ai.workers") != ""
    process = martlet("work", env={**env, "MARTLET_ONCE": "x"})
    assert process.wait() == 2
    assert "MARTLET_ONCE" in process.text
