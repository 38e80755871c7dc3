"""What apps see of priority batch: which generations are batched, how they are cancelled, and what limits do."""

from __future__ import annotations

from typing import Any

import pytest
from Batches.test_what_providers_say import BATCHED, SINGLE, Case
from batching import quick
from databases import Database, Member, refused


@pytest.fixture
def case(database: Database, member: Member) -> Case:
    return Case(database, member)


def row(case: Case, one: Any) -> dict[str, Any]:
    return case.database.execute("select * from ai.generations where id = %s", one)[0]


def sent_singly(case: Case) -> int:
    return len(case.worker.claim(look_at_everything=True))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("update ai.models set capabilities = '{}' where name = 'batch/model'", "the model has no batch interface"),
        (
            "update ai.models set capabilities = '{\"batch\": false}' where name = 'batch/model'",
            "the model has no batch interface",
        ),
        ("insert into ai.capture_policies (mode) values ('all')", "its tenant keeps calls sealed"),
        ("update ai.settings set provider_batch_bytes = 1024", "it is too large for a batch"),
        (
            "update ai.settings set provider_batch_window_ms = 259200000",
            "its deadline is nearer than the end of a batch",
        ),
    ],
)
def test_what_cannot_go_by_a_batch_is_sent_singly_and_says_why(case: Case, change: str, why: str) -> None:
    case.database.execute(change)
    (asked,) = case.ask(1)
    if "too large" in why:
        case.database.execute("update ai.generations set prompt = repeat('x', 300)")
    assert sent_singly(case) == 1
    assert [(s["stage"], s["result"], s["why"]) for s in row(case, asked)["stages"]] == [
        ("provider_batch", "passed", why)
    ]
    assert case.database.value("select count(*) from ai.provider_batches") == 0


def test_other_priorities_are_never_batched(case: Case) -> None:
    for priority in ("high", "normal", "low"):
        (asked,) = case.ask(1, priority=priority)
        assert sent_singly(case) == 1
        assert row(case, asked)["stages"] is None
        assert row(case, asked)["provider_batch_id"] is None


def test_a_batched_generation_has_three_days_unless_it_says_otherwise(case: Case) -> None:
    (usual,) = case.ask(1)
    (short,) = case.ask(1, deadline_ms=86400000)
    (long,) = case.ask(1, deadline_ms=2073600000)
    assert [row(case, one)["deadline_ms"] for one in (usual, short, long)] == [259200000, 86400000, 2073600000]
    assert sent_singly(case) == 1, "a day is not enough for a batch"
    with refused("PT400"):
        case.ask(1, deadline_ms=2073600001)
    with refused("PT400"):
        case.ask(1, deadline_ms=86400001, priority="low")
    with refused("PT400"):
        case.ask(1, stream=True)


def test_a_single_call_of_priority_batch_may_not_hang_for_days(case: Case) -> None:
    case.database.execute("update ai.models set capabilities = '{}'")
    case.ask(1)
    rows = case.worker._rows("select * from ai.worker_claim(%s, 10, null)", case.worker.id)
    assert rows[0]["timeout_ms"] == 600000


def test_a_batch_is_closed_when_it_is_full_and_by_time(case: Case) -> None:
    quick(case.database, provider_batch_requests=4, provider_batch_gather_ms=3600000)
    case.ask(9)
    case.gather()
    rows = case.database.execute(
        "select requests, due_at <= now() as due from ai.provider_batches order by requests desc"
    )
    assert [(r["requests"], r["due"]) for r in rows] == [(4, True), (4, True), (1, False)]
    assert case.worker.steps()
    assert case.database.value("select count(*) from ai.provider_batches where state = 'gathering'") == 1
    case.ask(2)
    case.gather()
    assert case.database.value("select requests from ai.provider_batches where state = 'gathering'") == 3
    case.database.execute(
        "update ai.provider_batches set due_at = 'infinity', worker_id = null where state <> 'gathering'"
    )
    case.worker.steps(0)
    assert 3500000 < case.worker.header["wait_ms"] <= 3600000


def test_bytes_close_a_batch_too(case: Case) -> None:
    quick(case.database, provider_batch_bytes=1024)
    case.ask(30)
    case.gather()
    assert case.database.value(
        "select max(bytes) <= 1024 and count(*) > 1 and sum(requests) = 30 from ai.provider_batches"
    )


def test_what_is_cancelled_before_it_is_sent_ends_at_the_next_step(case: Case) -> None:
    quick(case.database, provider_batch_gather_ms=3600000)
    first, second = case.ask(2)
    case.gather()
    assert case.app.execute("select ai.cancel(%s)", [first]).fetchone() == {"cancel": "running"}
    case.worker.steps()
    assert (row(case, first)["status"], row(case, second)["status"]) == ("cancelled", "running")
    assert case.calls(first) == []
    case.end()
    assert case.calls(second) == [BATCHED]
    assert case.batch()["requests"] == 1


@pytest.mark.parametrize(
    "switched_off",
    [
        "update ai.members set enabled = false where tenant_id = %s and user_id = %s",
        "update ai.tenants set enabled = false where id = %s and %s <> ''",
    ],
    ids=["member", "tenant"],
)
def test_what_was_asked_by_who_is_switched_off_before_it_is_sent_is_rejected(case: Case, switched_off: str) -> None:
    quick(case.database, provider_batch_gather_ms=3600000)
    (asked,) = case.ask(1)
    case.app = case.database.connect(user=case.database.member(case.member.tenant_id))
    (others,) = case.ask(1)
    case.gather()
    case.database.execute(switched_off, case.member.tenant_id, case.member.user_id)
    case.steps()
    case.singly()
    assert (row(case, asked)["status"], row(case, asked)["error"]["class"]) == ("rejected", "revoked")
    assert case.calls(asked) == []
    case.end()
    if "members" in switched_off:
        assert case.calls(others) == [BATCHED]
        assert case.batch()["requests"] == 1
    else:
        assert (row(case, others)["status"], case.provider.billed) == ("rejected", {})


def test_a_batch_whose_members_are_all_cancelled_is_cancelled_at_the_provider(case: Case) -> None:
    asked = case.ask(3)
    case.gather()
    case.until("poll")
    step = case.batch()
    case.app.execute("select ai.cancel(%s)", [asked[0]])
    case.app.execute("select ai.cancel(%s)", [asked[1]])
    case.database.execute("update ai.provider_batches set worker_id = null")
    assert case.until("poll")["action"] == "poll", "one still waits for its answer"
    case.app.execute("select ai.cancel(%s)", [asked[2]])
    case.database.execute("update ai.provider_batches set worker_id = null")
    assert [s["action"] for s in case.steps()] == ["cancel"]
    case.database.execute("update ai.provider_batches set worker_id = null")
    cancel = case.until("cancel")
    case.worker.report(cancel)
    poll = case.until("poll")
    assert step["id"] == poll["batch_id"]
    case.worker.report(poll, status="ended", ending="cancelled", has_results=True)
    collect = case.until("collect")
    done = {
        "id": str(asked[0]),
        "attempt": 1,
        "outcome": "succeeded",
        "output": "yes",
        "usage": {"input": 1, "output": 1},
    }
    case.worker.tell(collect, [done, {"id": str(asked[1]), "attempt": 1, "outcome": "cancelled"}])
    case.worker.report(collect)
    case.end()
    # What the provider had done is an answer, and paid for; the rest was never done.
    assert [row(case, one)["status"] for one in asked] == ["succeeded", "cancelled", "cancelled"]
    assert [case.calls(one) for one in asked] == [[BATCHED], [], []]
    assert case.database.value("select count(*) from ai.cancellations") == 0


def test_a_batch_that_was_never_sent_is_cancelled_without_a_word_to_the_provider(case: Case) -> None:
    asked = case.ask(2)
    case.gather()
    case.until("upload")
    case.database.execute("update ai.provider_batches set worker_id = null")
    for one in asked:
        case.app.execute("select ai.cancel(%s)", [one])
    assert case.steps() == []
    case.end()
    assert [row(case, one)["status"] for one in asked] == ["cancelled", "cancelled"]
    assert case.provider.jobs == {}
    assert case.batch()["ending"] == "cancelled"


def test_an_apps_batch_is_paused_cancelled_and_watched_whatever_way_its_rows_go(case: Case) -> None:
    batch = case.app.execute("select ai.create_batch('mixed', paused => true) as id").fetchone()["id"]
    by_batch = case.ask(3, batch_id=batch)
    case.ask(2, batch_id=batch, priority="low")
    assert sent_singly(case) == 0
    assert case.database.value("select count(*) from ai.provider_batches") == 0
    case.app.execute("select ai.resume_batch(%s)", [batch])
    assert sent_singly(case) == 2
    assert case.database.value("select requests from ai.provider_batches") == 3
    progress = case.app.execute("select * from ai.batch_progress(%s)", [batch]).fetchone()
    assert (progress["total"], progress["running"]) == (5, 5)
    cancelled = case.app.execute("select * from ai.cancel_batch(%s)", [batch]).fetchone()
    assert cancelled == {"cancelled": 0, "running": 5}
    case.end()
    assert [row(case, one)["status"] for one in by_batch] == ["cancelled"] * 3
    assert case.provider.jobs == {}


def test_an_operator_cancels_a_provider_batch_as_a_whole(case: Case) -> None:
    asked = case.ask(2)
    other = case.database.connect(user=case.database.member(case.member.tenant_id))
    other.execute("insert into ai.generations (prompt, model, priority) values ('x', %s, 'batch')", [case.model])
    case.gather()
    batch = case.batch()["id"]
    with refused("PT404"):  # somebody else has a row in it
        case.app.execute("select ai.cancel_provider_batch(%s)", [batch])
    stranger = case.database.connect(user=case.database.member(role="admin"))
    with refused("PT404"):
        stranger.execute("select ai.cancel_provider_batch(%s)", [batch])
    admin = case.database.connect(user=case.database.member(case.member.tenant_id, role="admin"))
    assert admin.execute("select ai.cancel_provider_batch(%s) as n", [batch]).fetchone() == {"n": 3}
    case.end()
    assert [row(case, one)["status"] for one in asked] == ["cancelled"] * 2


def test_a_budget_is_reserved_as_long_as_the_batch_runs_and_settled_by_what_it_cost(case: Case) -> None:
    # A member may cost input 3 and output 15 a million tokens at the most: 100 tokens of output, and its bytes.
    case.database.execute(
        "insert into ai.limits (tenant_id, metric, period, amount) values (%s, 'cost', 'month', 0.0045)",
        case.member.tenant_id,
    )
    asked = case.ask(4)
    for _ in range(5):
        assert sent_singly(case) == 0
    balance = "select balance from ai.counter_entries order by seq desc limit 1"
    assert case.batch()["requests"] == 2, "two fit"
    assert case.database.value(balance) > case.database.value("select 2 * 100 * 0.000015")
    case.end()
    case.database.execute("update ai.parked_lanes set until = now()")
    assert sent_singly(case) == 0
    case.end()
    case.database.execute("update ai.parked_lanes set until = now()")
    assert sent_singly(case) == 0
    case.end()
    case.all_answered()
    assert [case.calls(one) for one in asked] == [[BATCHED]] * 4
    assert case.database.value(balance) == case.database.value("select sum(cost) from ai.llm_calls")


def test_who_asks_the_same_does_not_wait_for_a_batch(case: Case) -> None:
    case.database.execute("insert into ai.cache_policies (tenant_id) values (null)")
    case.ask(1)
    case.gather()
    case.ask(1, priority="normal")
    assert sent_singly(case) == 1


def test_a_batch_that_takes_too_long_is_cancelled_then_given_up(case: Case) -> None:
    asked = case.ask(2)
    case.gather()
    case.until("poll")
    case.database.execute("update ai.provider_batches set worker_id = null, give_up_at = now()")
    (cancel,) = case.steps()
    assert cancel["action"] == "cancel"
    case.worker.report(cancel)
    poll = case.until("poll")
    case.worker.report(poll, status="running", word="cancelling")
    case.database.execute("update ai.provider_batches set give_up_at = now()")
    assert case.steps() == []
    case.end()
    assert (case.batch()["ending"], case.batch()["missing"]) == ("lost", 2)
    assert case.singly() == 2
    case.all_answered()
    assert [case.calls(one) for one in asked] == [[("failed", "unknown", "batch", True), SINGLE]] * 2


def test_who_may_see_provider_batches(case: Case) -> None:
    case.ask(1)
    case.gather()
    see = "select count(*) as n from ai.provider_batches"
    assert case.app.execute(see).fetchone() == {"n": 0}, "a user sees none: others have rows in them"
    developer = case.database.connect(user=case.database.member(case.member.tenant_id, role="developer"))
    assert developer.execute(see).fetchone() == {"n": 1}
    stranger = case.database.connect(user=case.database.member(role="admin"))
    assert stranger.execute(see).fetchone() == {"n": 0}
    with refused("42501"):
        developer.execute("select secret from ai.provider_batches")
    with refused("42501"):
        developer.execute("select * from ai.batched_requests")
    monitor = case.database.connect(user=case.database.login("ai_monitor"))
    with refused("42501"):
        monitor.execute(see)
    totals = monitor.execute("select state, batches, members from ai.provider_batch_totals()").fetchall()
    assert totals == [{"state": "gathering", "batches": 1, "members": 1}]


def test_members_of_a_batch_that_somebody_deleted_are_taken_back(case: Case) -> None:
    asked = case.ask(2)
    case.gather()
    case.until("poll")
    case.database.execute("delete from ai.provider_batches")
    assert case.database.value("select ai.tidy_provider_batches(now())") == 2
    assert case.singly() == 2
    case.all_answered()
    assert [case.calls(one) for one in asked] == [[("failed", "unknown", "batch", True), SINGLE]] * 2


def test_no_prompt_is_kept_beside_the_generation_once_the_provider_has_it(case: Case) -> None:
    case.ask(2)
    case.gather()
    assert case.database.value("select count(*) from ai.batched_requests") == 2
    case.until("poll")
    assert case.database.value("select count(*) from ai.batched_requests") == 0
