"""How many pages a claim and a settle look at, whatever else is in the database: nothing may grow with what is queued,
with what has ended or with what is dead."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest
from counting import Load, ask_for_many, bound, buffers, have_ended
from databases import Database

BATCH = 64


def of_claim_and_settle(load: Load) -> tuple[int, int]:
    """Pages of a claim with a cursor and of a settle: the least of some, because now and then a page is split."""
    claims, settles = [], []
    for _ in range(3):
        load.settle(load.claim(BATCH))
    for _ in range(5):
        claims.append(load.buffers_of_claim(BATCH, load.worker.cursor))
        held = load.leased()
        assert len(held) == BATCH, f"{len(held)} were claimed"
        settles.append(load.buffers_of_settle(held))
        load.settle(load.claim(BATCH))
    return min(claims), min(settles)


@pytest.fixture
def alone(load: Load) -> tuple[int, int]:
    """Pages of a claim and of a settle of one tenant's generations with hardly anything beside them."""
    load.insert(BATCH * 20)
    found = of_claim_and_settle(load)
    load.settle(load.claim(BATCH * 7))
    return found


def test_a_claim_and_a_settle_look_at_no_more_pages_beside_many_tenants_queues_and_ends(
    load: Load, alone: tuple[int, int]
) -> None:
    tenants = ask_for_many(load, tenants=1000, each=50)
    have_ended(load, tenants[0], 50_000)
    load.vacuum()
    load.worker.claim(1, look_at_everything=True)
    load.settle(load.leased())
    claim, settle = of_claim_and_settle(load)
    found = f"a claim looks at {claim} pages instead of {alone[0]}, a settle at {settle} instead of {alone[1]}"
    assert claim <= alone[0] * bound("pages of a claim, crowded to alone"), found
    assert settle <= alone[1] * bound("pages of a settle, crowded to alone"), found


def test_a_claim_and_a_settle_look_at_no_page_of_what_an_old_snapshot_keeps(load: Load, quiet: Database) -> None:
    load.insert(BATCH * 80)
    with psycopg.connect(quiet.url) as old:
        old.execute("set transaction isolation level repeatable read")
        old.execute("select from ai.generations limit 1")
        first = of_claim_and_settle(load)
        for _ in range(40):
            load.settle(load.claim(BATCH))
        last = of_claim_and_settle(load)
    found = f"claim and settle looked at {first} pages, then at {last}"
    assert last[0] <= first[0] * 1.3, found
    assert last[1] <= first[1] * 1.3, found


def test_a_claim_and_a_settle_look_at_no_more_pages_than_their_bounds(alone: tuple[int, int]) -> None:
    assert alone[0] / BATCH <= bound("pages of a claim, batches of 64"), f"{alone[0] / BATCH:.1f} a generation"
    assert alone[1] / BATCH <= bound("pages of a settle, batches of 64"), f"{alone[1] / BATCH:.1f} a generation"


def test_one_row_of_a_quiet_tenant_is_in_the_next_claim_beside_many_of_a_loud_one(load: Load) -> None:
    load.insert(BATCH * 14)
    of_claim_and_settle(load)
    before = load.buffers_of_claim(BATCH, load.worker.cursor)
    load.settle(load.leased())
    ask_for_many(load, tenants=1, each=30_000)
    [quiet_one] = ask_for_many(load, tenants=1, each=1)
    assert load.worker.cursor is not None
    after = load.buffers_of_claim(BATCH, load.worker.cursor)
    owners = load.database.execute("select distinct tenant_id from ai.leases")
    assert quiet_one in {row["tenant_id"] for row in owners}
    assert after <= before * 1.6, f"the claim looked at {after} pages instead of {before}"


def of_a_cancel(load: Load) -> int:
    """Pages that the cancelling of a queued generation looks at."""
    load.insert(1)
    wanted = load.database.value("select generation_id from ai.queue")
    return buffers(load.app, "select ai.cancel(%s)", wanted)


def of_late_cancels(load: Load) -> int:
    """Pages that are looked at to forget requests to cancel what has ended meanwhile."""
    load.round(BATCH)
    load.database.execute(
        "insert into ai.cancellations (generation_id, tenant_id)"
        " select id, tenant_id from ai.generations where status = 'succeeded' order by id desc limit %s",
        BATCH,
    )
    found = buffers(load.worker.connection, "select * from ai.worker_claim(%s, 1, null)", load.worker.id)
    assert load.database.value("select count(*) from ai.cancellations") == 0
    return found


@pytest.mark.parametrize("pages", [of_a_cancel, of_late_cancels], ids=lambda pages: pages.__name__)
def test_cancelling_looks_at_no_more_pages_beside_many_batches(load: Load, pages: Callable[[Load], int]) -> None:
    pages(load)
    before = pages(load)
    load.app.execute("select ai.create_batch('b' || n) from generate_series(1, 2000) n")
    load.database.execute("vacuum analyze ai.lanes")
    after = pages(load)
    assert after <= before * 1.3, f"{after} pages instead of {before}"


def test_upkeep_looks_for_what_is_late_at_no_more_pages_of_a_deep_queue(load: Load, quiet: Database) -> None:
    session = quiet.connect()

    def pages() -> int:
        return min(buffers(session, "select ai.end_queued_overdue(now())") for _ in range(3))

    load.insert(1_000)
    before = pages()
    load.insert(29_000)
    after = pages()
    assert after <= before * 1.3, f"upkeep looked at {after} pages instead of {before}"
    ask_for_many(load, tenants=1000, each=20)
    crowded = pages()
    assert crowded <= before * 20, f"upkeep looked at {crowded} pages instead of {before}, at ten times as many rows"
