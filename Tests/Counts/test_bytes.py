"""What a generation takes on disk and in the log of the database: a prompt of 0.2 kB and an answer of 0.1 kB."""

from __future__ import annotations

import pytest
from counting import Load, bound

BATCHES = pytest.mark.parametrize(("batch", "rounds"), [(64, 40), (1, 500)], ids=["by 64", "one by one"])


@BATCHES
def test_a_generation_logs_no_more_than_its_bound(load: Load, batch: int, rounds: int) -> None:
    for _ in range(10):  # the first plans, pages and extensions of files
        load.round(batch)
    inserted = claimed = settled = 0
    for _ in range(rounds):
        inserted += load.logged(lambda: load.insert(batch))
        held = []
        claimed += load.logged(lambda held=held: held.extend(load.claim(batch)))
        settled += load.logged(lambda held=held: load.settle(held))
    each = [round(part / batch / rounds) for part in (inserted, claimed, settled)]
    assert sum(each) <= bound(f"WAL, B, batches of {batch}"), f"insert, claim and settle log {each} B"


@BATCHES
def test_a_generation_is_stored_in_no_more_than_its_bound(load: Load, batch: int, rounds: int) -> None:
    def some() -> None:
        """A tenth, and then what autovacuum would do: as often as ai.make_partitions() asks of it."""
        for _ in range(rounds // 10):
            load.round(batch)
        load.vacuum()

    some()  # maps of free pages and the like, which each table has once
    before = load.stored()
    for _ in range(10):
        some()
    each = (load.stored() - before) / batch / rounds
    assert each <= bound(f"storage, B, batches of {batch}"), f"{each:.0f} B a generation"


def test_neither_a_claim_nor_an_end_logs_the_prompt_again(load: Load) -> None:
    def cost(length: int) -> list[int]:
        """Of a claim and of a settle, the median of some."""
        found: list[tuple[int, int]] = []
        for _ in range(9):
            load.insert(1, length)
            held = []
            claim = load.logged(lambda held=held: held.extend(load.claim(1)))
            found.append((claim, load.logged(lambda held=held: load.settle(held))))
        return [sorted(part)[4] for part in zip(*found, strict=True)]

    cost(20)
    short, long = cost(20), cost(600)
    for name, one, other in zip(("claim", "settle"), short, long, strict=True):
        assert other - one < 150, f"a {name} logs {one} B after a prompt of 20 B and {other} B after one of 600 B"
