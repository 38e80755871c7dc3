"""j: what a generation takes on the disk and in the write-ahead log."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from Benchmarks import pgbench
from Benchmarks.installation import Installation
from Benchmarks.measuring import Figures, Result, at_most, in_turns
from Benchmarks.setting import Setting

# All that is kept for good; queue, leases and the like are empty between two loads, and vacuumed.
_STORED = """
select sum(pg_total_relation_size(c.oid))::float8 / 1024 from pg_class c
 where c.relnamespace = 'ai'::regnamespace and c.relkind = 'r'
"""


def log_kilobytes(installed: Installation, first: str, last: str) -> float:
    """The records between two places of the log without page images, which depend on when checkpoints come."""
    folder = Path(installed.database.value("show data_directory")) / "pg_wal"
    command = [pgbench.program("pg_waldump"), "--stats", "--path", str(folder), "--start", first, "--end", last]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    total = re.search(r"^Total\s+\d+\s+(\d+) \[[^]]*\]\s+\d+ \[", done.stdout, re.MULTILINE)
    assert total, f"pg_waldump: {done.stderr}\n{done.stdout[-500:]}"
    return int(total[1]) / 1024


def measured(installed: Installation, generations: int, **options: object) -> Figures:
    database = installed.database
    database.execute("vacuum")
    before, first = database.value(_STORED), database.value("select pg_current_wal_insert_lsn()::text")
    report = installed.bench("load", model="bench/chat", requests=generations, **options)
    last = database.value("select pg_current_wal_flush_lsn()::text")
    assert report["statuses"] == {"succeeded": generations}, report
    log = log_kilobytes(installed, first, last)
    database.execute("vacuum")
    return {"stored": (database.value(_STORED) - before) / generations, "log": log / generations}


def run(setting: Setting) -> list[Result]:
    with setting.installation() as installed:
        installed.model("bench/chat")
        installed.warm_up("bench/chat")
        with installed.working():
            taken = in_turns(
                setting.rounds,
                {
                    "64": lambda: measured(installed, setting.size(12_800, 640), clients=1, batch=64),
                    "1": lambda: measured(installed, setting.size(2_000, 100), clients=1),
                },
            )
    return [
        Result("j", "storage a generation, 0.2 KB prompt, books and indexes included", "KB", taken["64"]["stored"], {},
               [at_most(1.5)], more_is_better=False, remark="all tables of the schema after a plain VACUUM"),
        Result("j", "write-ahead log a generation, inserts of 64, page images apart", "KB", taken["64"]["log"], {},
               [at_most(2.6)], more_is_better=False),
        Result("j", "write-ahead log a generation, inserts of 1, page images apart", "KB", taken["1"]["log"], {},
               [at_most(3.3)], more_is_better=False),
    ]  # fmt: skip
