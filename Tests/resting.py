"""What workers do while there is nothing to do, by the server's own account."""

from __future__ import annotations

import time
from dataclasses import dataclass

from databases import Database

_SUMS = "select xact_commit + xact_rollback as transactions, sessions from pg_stat_database where datname = %s"


@dataclass(frozen=True)
class Rest:
    """Of all sessions of a database but the one that counts."""

    transactions: int
    # That began meanwhile.
    sessions: int
    seconds: float

    @property
    def rate(self) -> float:
        """Transactions a second. A worker sends no BEGIN, so each of its statements is one; so is each that it has
        to prepare, and the beginning of each session."""
        return self.transactions / self.seconds


def watch(database: Database, seconds: float) -> Rest:
    """Counts for so long. Autovacuum should be off: its transactions would be counted.

    A session reports its sums at once where it did not within the last second, and else within ten: what went before
    is counted, too, unless it is that long ago.
    """
    before, began = database.execute(_SUMS, database.name)[0], time.monotonic()
    time.sleep(seconds)
    after, elapsed = database.execute(_SUMS, database.name)[0], time.monotonic() - began
    # The first of the two questions has been counted by the second.
    return Rest(after["transactions"] - before["transactions"] - 1, after["sessions"] - before["sessions"], elapsed)
