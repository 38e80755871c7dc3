"""`make bench`: runs the benchmarks beside their peers and writes what came out.

scripts/bench [--quick] [--no-peers] [--patience TIMES] [LETTER …]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
from Benchmarks import (
    added_latency,
    at_rest,
    deep_queue,
    full_answers,
    inserts,
    local_answers,
    machine,
    many_streams,
    page,
    pickup,
    progress,
    several_workers,
    spike,
    storage,
)
from Benchmarks.measuring import Result
from Benchmarks.setting import Setting

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs/benchmarks.md"
NEWEST = REPOSITORY / "Tests/Benchmarks/newest.json"

Benchmark = Callable[[Setting], list[Result]]
# With the seconds that each may take at full size: about three times what two processors and quiet need.
BENCHMARKS: dict[str, tuple[Benchmark, float]] = {
    "a": (full_answers.run, 300),
    "b": (added_latency.run, 300),
    "c": (local_answers.run, 300),
    "d": (pickup.run, 240),
    "e": (inserts.run_single_rows, 240),
    "f": (inserts.run_many_rows, 300),
    "g": (many_streams.run, 600),
    "h": (deep_queue.run, 1500),
    "i": (several_workers.run, 300),
    "j": (storage.run, 300),
    "k": (at_rest.run, 300),
    "l": (spike.run, 600),
}
QUICK = 240.0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Benchmarks beside their peers.")
    parser.add_argument("letters", nargs="*", metavar="LETTER", help=f"only these, of {' '.join(BENCHMARKS)}")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes and one round: shows that it works, measures nothing"
    )
    parser.add_argument("--no-peers", action="store_true", help="without other projects' programs")
    parser.add_argument("--rounds", type=int, default=3, help="of each; medians are reported (3)")
    parser.add_argument("--patience", type=float, default=1.0, help="times the seconds that each may take (1)")
    parser.add_argument("--json", type=Path, help="write the results here, and leave the page as it is")
    options = parser.parse_args(arguments)
    unknown = set(options.letters) - set(BENCHMARKS)
    if unknown:
        parser.error(f"no such benchmark: {' '.join(sorted(unknown))}")
    letters = sorted(set(options.letters)) or list(BENCHMARKS)
    server = os.environ.get("MARTLET_TEST_DATABASE_URL") or parser.error("MARTLET_TEST_DATABASE_URL is not set")

    with tempfile.TemporaryDirectory(prefix="martlet-bench-") as folder:
        setting = Setting(
            server, Path(folder), 1 if options.quick else options.rounds, options.quick, not options.no_peers
        )
        results: list[dict[str, Any]] = []
        errors: dict[str, str] = {}
        # After each of them, so that nothing is lost if a later one is ended from outside.
        for letter, rows, error in measure(setting, letters, options.patience):
            results += rows
            errors |= {letter: error} if error else {}
            if options.json:
                options.json.write_text(json.dumps({"results": results, "errors": errors}, indent=1) + "\n")
            elif not options.quick:
                keep(letter, rows, error)
    print(page.plain(results))
    for name, reason in errors.items():
        print(f"{name}  not measured: {reason}")
    if not options.json and not options.quick:
        print(f"written: {PAGE.relative_to(REPOSITORY)}, {NEWEST.relative_to(REPOSITORY)}")
    return 1 if errors else 0


def measure(
    setting: Setting, letters: list[str], patience: float = 1.0
) -> Iterator[tuple[str, list[dict[str, Any]], str | None]]:
    """The results of each of these benchmarks, or why there are none."""
    with psycopg.connect(setting.server, autocommit=True) as connection:
        postmaster = machine.parent(connection.info.backend_pid)
        version = connection.info.parameter_status("server_version")
    for letter in letters:
        run, seconds = BENCHMARKS[letter]
        watch = machine.Watch(postmaster)
        try:
            with watch, progress.doing(letter), progress.within(patience * setting.size(seconds, QUICK)):
                lines = run(setting)
        except Exception as error:  # the others are measured all the same
            traceback.print_exc()
            yield letter, [], (str(error).splitlines() or [type(error).__name__])[0]
            continue
        conditions = watch.conditions | machine.description() | {"postgres": version}
        rows = [line.as_json(conditions) for line in lines]
        progress.say(page.plain(rows))
        yield letter, rows, None


def keep(letter: str, rows: list[dict[str, Any]], error: str | None) -> None:
    """Puts the results of a benchmark in the place of its old ones; where it failed, those stay, beside the reason."""
    known = json.loads(NEWEST.read_text()) if NEWEST.exists() else {"results": [], "errors": {}}
    merged = [row for row in known["results"] if row["benchmark"] != letter or error] + rows
    merged.sort(key=lambda row: row["benchmark"])
    failed = {name: reason for name, reason in known["errors"].items() if name != letter}
    failed |= {letter: error} if error else {}
    NEWEST.write_text(json.dumps({"results": merged, "errors": failed}, indent=1) + "\n")
    page.write(PAGE, merged, failed)


def end(number: int, frame: object) -> None:
    """Asked to end: what was started is ended first."""
    sys.exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, end)
    sys.exit(main())
