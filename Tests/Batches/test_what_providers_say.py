"""What a provider may say of a batch, and leave out: nothing is billed twice, and what cannot be decided is visible."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from batching import BatchWorker, Provider, batch_model, quick
from databases import Database, Member, refused
from simulated import books_are_consistent


class Case:
    """A database with one model, a worker and a provider that keeps names, as OpenAI does."""

    def __init__(self, database: Database, member: Member, dialect: str = "openai") -> None:
        quick(database)
        self.database, self.member = database, member
        self.model = batch_model(database, dialect)
        self.provider = Provider(names=dialect != "anthropic")
        self.worker = BatchWorker(database, self.provider, lambda moment: None)
        self.app = database.connect(user=member)

    def ask(self, count: int, **columns: Any) -> list[uuid.UUID]:
        columns = {"model": self.model, "priority": "batch", **columns}
        rows = self.app.execute(
            f"insert into ai.generations (prompt, {', '.join(columns)})"
            f" select 'question ' || n, {', '.join(['%s'] * len(columns))} from generate_series(1, %s) n returning id",
            [*columns.values(), count],
        )
        return [row["id"] for row in rows]

    def gather(self) -> None:
        while self.worker.claim(look_at_everything=True):
            raise AssertionError("something was sent singly")
        assert not self.database.value("select count(*) from ai.queue")

    def until(self, action: str) -> dict[str, Any]:
        """Does steps until the next one is this, and gives it, taken."""
        for _ in range(200):
            for step in self.steps():
                if step["action"] == action:
                    return step
                self.worker.do(step)
        raise AssertionError(f"{action} never came: {self.batch()}")

    def steps(self) -> list[dict[str, Any]]:
        """The next steps; what waits for its time need not."""
        self.database.execute("update ai.provider_batches set due_at = now() where state <> 'ended'")
        return self.worker.steps()

    def end(self) -> None:
        """Goes on until every provider batch has ended."""
        for _ in range(200):
            if not self.database.value("select count(*) from ai.provider_batches where state <> 'ended'"):
                return
            for step in self.steps():
                self.worker.do(step)
        raise AssertionError(f"it does not end: {self.batch()}")

    def batch(self) -> dict[str, Any]:
        return self.database.execute("select * from ai.provider_batches order by id desc limit 1")[0]

    def singly(self) -> int:
        """Answers what is queued now, and says how many that were."""
        self.database.execute("update ai.delayed set due_at = now()")
        count = 0
        while attempts := self.worker.claim(look_at_everything=True):
            self.worker.settle(attempts, usage={"input": 10, "output": 5})
            count += len(attempts)
        return count

    def calls(self, one: uuid.UUID) -> list[tuple[Any, ...]]:
        rows = self.database.execute("select * from ai.llm_calls where generation_id = %s order by attempt", one)
        return [(row["status"], row["error_class"], row["service_tier"], row["estimated"]) for row in rows]

    def all_answered(self) -> None:
        assert self.database.value("select count(*) from ai.generations where status <> 'succeeded'") == 0
        books_are_consistent(self.database)


@pytest.fixture
def case(database: Database, member: Member) -> Iterator[Case]:
    return Case(database, member)


BATCHED = ("succeeded", None, "batch", False)
SINGLE = ("succeeded", None, None, False)


def test_members_that_failed_or_expired_go_on_singly_at_the_ordinary_price(case: Case) -> None:
    first, second, third = case.ask(3)
    fates = {
        str(second): {"outcome": "failed", "signal": "http", "http_status": 500, "usage": None},
        str(third): {"outcome": "expired"},
    }
    case.provider.fates = lambda member: fates.get(member.partition("_")[0], {})
    case.gather()
    case.end()
    assert case.singly() == 2
    case.all_answered()
    assert case.calls(first) == [BATCHED]
    assert case.calls(second) == [("failed", "transient", "batch", True), SINGLE]
    assert case.calls(third) == [("failed", "expired", "batch", False), SINGLE]
    batch = case.batch()
    assert (batch["succeeded"], batch["failed"], batch["expired"], batch["missing"]) == (1, 1, 1, 0)
    assert case.database.value("select cost from ai.llm_calls where generation_id = %s and attempt = 1", third) == 0


def test_members_of_which_a_batch_says_nothing_are_booked_as_unknown(case: Case) -> None:
    first, second = case.ask(2)
    case.provider.fates = lambda member: None if member.startswith(str(second)) else {}
    case.gather()
    case.end()
    assert case.singly() == 1
    case.all_answered()
    assert case.calls(first) == [BATCHED]
    assert case.calls(second) == [("failed", "unknown", "batch", True), SINGLE]
    assert case.database.value("select cost > 0 from ai.llm_calls where generation_id = %s and attempt = 1", second)
    assert case.batch()["missing"] == 1


def test_results_that_come_twice_count_once_and_those_of_strangers_not_at_all(case: Case) -> None:
    asked = case.ask(3)
    case.gather()
    step = case.until("collect")
    results = [
        {"id": str(one), "attempt": 1, "outcome": "succeeded", "output": "yes", "usage": {"input": 10, "output": 5}}
        for one in asked
    ]
    stranger = {**results[0], "id": str(uuid.uuid4())}
    later = {**results[0], "attempt": 2}
    assert case.worker.tell(step, [results[0], results[0], stranger, {"outcome": "malformed"}]) == "taken"
    assert case.worker.tell(step, [*results, later]) == "taken"
    assert case.worker.report(step) == "taken"
    case.end()
    case.all_answered()
    assert [case.calls(one) for one in asked] == [[BATCHED]] * 3
    batch = case.batch()
    assert (batch["succeeded"], batch["repeated"], batch["strays"], batch["malformed"]) == (3, 3, 1, 1)


def test_results_of_another_tenants_generation_change_nothing(case: Case, database: Database) -> None:
    other = Case.__new__(Case)
    other.__dict__ = {**case.__dict__, "app": database.connect(user=database.member())}
    (_mine,) = case.ask(1)
    (theirs,) = other.ask(1)
    case.gather()
    tenant = case.member.tenant_id
    steps = {}
    for _ in range(50):
        for step in case.steps():
            owner = database.value("select tenant_id from ai.provider_batches where id = %s", step["batch_id"])
            if step["action"] == "collect" and owner == tenant:
                steps[owner] = step
            elif step["action"] != "collect":
                case.worker.do(step)
    answer = {"id": str(theirs), "attempt": 1, "outcome": "succeeded", "output": "stolen"}
    assert case.worker.tell(steps[tenant], [answer]) == "taken"
    assert database.value("select status from ai.generations where id = %s", theirs) == "running"
    assert database.value("select strays from ai.provider_batches where tenant_id = %s", tenant) == 1


def test_a_report_of_a_step_that_is_somebody_elses_changes_nothing(case: Case) -> None:
    (asked,) = case.ask(1)
    case.gather()
    step = case.until("collect")
    case.database.execute("update ai.workers set ended_at = now(), ending = 'dead' where id = %s", case.worker.id)
    late, case.worker = case.worker, BatchWorker(case.database, case.provider, lambda moment: None)
    (again,) = case.steps()
    assert (again["batch_id"], again["action"]) == (step["batch_id"], "collect")
    assert again["step"] > step["step"]
    answer = {"id": str(asked), "attempt": 1, "outcome": "succeeded", "output": "late"}
    assert late.tell(step, [answer]) == "stale"
    assert late.report(step) == "stale"
    assert late.members(step) == []
    case.worker.do(again)
    case.end()
    case.all_answered()
    assert case.database.value("select output from ai.generations where id = %s", asked) == "yes"


def test_a_step_whose_answer_was_lost_with_its_connection_is_given_again(case: Case) -> None:
    case.ask(1)
    case.gather()
    (lost,) = case.steps()
    # It says which steps it does: not this one.
    (again,) = case.steps()
    assert lost["action"] == "upload"
    assert again["action"] == "find_file"
    known = f'[["{again["batch_id"]}", {again["step"]}]]'
    rows = case.worker._rows("select * from ai.worker_batch_steps(%s, 4, %s)", case.worker.id, known)
    assert [row["action"] for row in rows] == [None]
    assert case.worker.report(again, file_id=None) == "taken"
    case.end()
    case.all_answered()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_a_batch_that_the_provider_refuses_is_dissolved_and_its_members_go_on_singly(case: Case, status: int) -> None:
    asked = case.ask(3)
    case.gather()
    step = case.until("create")
    case.worker.report(step, outcome="failed", signal="http", http_status=status, error_code="no")
    case.end()
    assert case.singly() == 3
    case.all_answered()
    # Nothing was done, so nothing is on the books but what was.
    assert [case.calls(one) for one in asked] == [[SINGLE]] * 3
    batch = case.batch()
    assert (batch["ending"], batch["cancelled"], batch["error"]["http_status"]) == ("refused", 3, status)


@pytest.mark.parametrize(
    "failure",
    [
        {"signal": "http", "http_status": 500},
        {"signal": "http", "http_status": 503},
        {"signal": "timeout"},
        {"signal": "reset"},
        {"signal": "malformed"},
        {"signal": "truncated"},
    ],
)
def test_a_creation_that_may_have_succeeded_is_looked_for_before_it_is_repeated(
    case: Case, failure: dict[str, Any]
) -> None:
    asked = case.ask(2)
    case.gather()
    step = case.until("create")
    report = case.worker.create(step, step["details"], str(step["batch_id"]))  # it was made, and nobody heard of it
    assert len(case.provider.jobs) == 1
    assert report
    case.worker.report(step, outcome="failed", **failure)
    (found,) = case.steps()
    assert found["action"] == "find"
    case.worker.do(found)
    case.end()
    case.all_answered()
    assert len(case.provider.jobs) == 1
    assert [case.calls(one) for one in asked] == [[BATCHED]] * 2


@pytest.mark.parametrize(
    "failure", [{"signal": "connect"}, {"signal": "http", "http_status": 429, "retry_after_ms": 5}]
)
def test_a_creation_that_cannot_have_succeeded_is_repeated_at_once(case: Case, failure: dict[str, Any]) -> None:
    case.ask(2)
    case.gather()
    for _ in range(3):
        step = case.until("create")
        case.worker.report(step, outcome="failed", **failure)
    case.end()
    case.all_answered()
    assert len(case.provider.jobs) == 1


def test_a_batch_that_is_not_in_the_list_is_made_again_only_when_that_is_certain(case: Case) -> None:
    case.ask(2)
    quick(case.database, provider_batch_settle_ms=86400000)
    case.gather()
    step = case.until("create")
    case.worker.report(step, outcome="failed", signal="timeout")
    for _ in range(5):
        (again,) = case.steps()
        assert again["action"] == "find"
        case.worker.do(again)
    case.database.execute("update ai.provider_batches set intent_at = intent_at - interval '2 days'")
    (again,) = case.steps()
    case.worker.report(again, found=[], complete=False)
    (again,) = case.steps()
    assert again["action"] == "find", "a list that was not read to its end is no proof"
    case.worker.do(again)
    case.end()
    case.all_answered()
    assert len(case.provider.jobs) == 1


def test_a_batch_that_the_provider_forgot_is_given_up_after_three_words(case: Case) -> None:
    asked = case.ask(2)
    case.gather()
    for _ in range(3):
        step = case.until("poll")
        assert case.batch()["state"] == "running"
        case.worker.report(step, outcome="failed", signal="http", http_status=404)
    case.end()
    assert (case.batch()["ending"], case.batch()["missing"]) == ("lost", 2)
    assert case.singly() == 2
    case.all_answered()
    assert [case.calls(one) for one in asked] == [[("failed", "unknown", "batch", True), SINGLE]] * 2


def test_a_provider_that_is_away_for_a_while_is_asked_again(case: Case) -> None:
    case.ask(2)
    case.gather()
    for failure in [
        {"signal": "connect"},
        {"signal": "http", "http_status": 503},
        {"signal": "http", "http_status": 404},
    ]:
        case.worker.report(case.until("poll"), outcome="failed", **failure)
    for _ in range(2):
        case.worker.report(case.until("collect"), outcome="failed", signal="reset")
    case.end()
    case.all_answered()


def test_a_batch_that_was_refused_for_want_of_room_is_made_again_of_the_same_file(case: Case) -> None:
    case.ask(2)
    case.gather()
    step = case.until("poll")
    case.worker.report(step, status="ended", ending="failed", word="failed", error_code="token_limit_exceeded")
    assert (case.batch()["state"], case.batch()["action"]) == ("sending", "create")
    case.end()
    case.all_answered()
    assert len(case.provider.jobs) == 2
    assert len(case.provider.files) == 1


def test_a_batch_that_failed_as_a_whole_was_never_done(case: Case) -> None:
    asked = case.ask(2)
    case.gather()
    case.worker.report(case.until("poll"), status="ended", ending="failed", error_code="invalid_file_format")
    case.end()
    assert case.singly() == 2
    case.all_answered()
    assert [case.calls(one) for one in asked] == [[SINGLE]] * 2


def test_somebody_elses_batch_of_the_same_size_is_not_taken_for_ours(database: Database, member: Member) -> None:
    case = Case(database, member, "anthropic")
    asked = case.ask(2)
    case.gather()
    step = case.until("create")
    strangers = [f"{uuid.uuid4()}_1" for _ in range(2)]
    case.provider.create("", strangers, step["details"]["since"])
    case.worker.report(step, outcome="failed", signal="timeout")
    (found,) = case.steps()
    case.worker.do(found)
    assert (case.batch()["external_id"], case.batch()["guessed"]) == ("batch-1", True)
    # What is not certainly ours is not cancelled.
    for one in asked:
        case.app.execute("select ai.cancel(%s)", [one])
    assert [step["action"] for step in case.steps()] == ["poll"]
    database.execute("delete from ai.cancellations")
    database.execute("update ai.provider_batches set cancel_at = null, worker_id = null")
    case.end()
    case.all_answered()
    assert [case.calls(one) for one in asked] == [[BATCHED]] * 2
    assert case.batch()["refused_ids"] == ["batch-1"]


def test_two_batches_of_one_size_that_were_taken_for_each_other_bring_their_answers_home(
    database: Database, member: Member
) -> None:
    case = Case(database, member, "anthropic")
    quick(database, provider_batch_requests=2)
    asked = case.ask(4)
    case.gather()
    first, second = case.steps()
    for step in (second, first):  # made in the other order than they are looked for
        case.worker.create(step, step["details"], str(step["batch_id"]))
    for step in (first, second):
        case.worker.report(step, outcome="failed", signal="reset")
    case.end()
    case.all_answered()
    assert [case.calls(one) for one in asked] == [[BATCHED]] * 4


def test_only_workers_may_do_steps(case: Case) -> None:
    for sql in (
        "select * from ai.worker_batch_steps(gen_random_uuid(), 1)",
        "select * from ai.worker_batch_requests(gen_random_uuid(), gen_random_uuid(), 1, null, 1)",
        "select ai.worker_batch_report(gen_random_uuid(), gen_random_uuid(), 1, '{}')",
        "select ai.worker_batch_results(gen_random_uuid(), gen_random_uuid(), 1, '[]')",
    ):
        with refused("42501"):
            case.app.execute(sql)
    with refused("PT404"):
        case.worker._rows("select * from ai.worker_batch_steps(gen_random_uuid(), 1)")
    for bad in ("{}", "null", "7"):
        with refused("PT400"):
            case.worker._rows("select ai.worker_batch_results(%s, gen_random_uuid(), 1, %s)", case.worker.id, bad)


def test_how_long_a_failed_step_waits(case: Case) -> None:
    case.ask(1)
    case.gather()
    quick(case.database, backoff_base_ms=1000, backoff_cap_ms=30000)
    wait = "select extract(epoch from due_at - now()) from ai.provider_batches"
    case.worker.report(case.until("upload"), outcome="failed", signal="connect")
    assert 0 < case.database.value(wait) <= 1
    case.worker.report(case.until("upload"), outcome="failed", signal="http", http_status=429, retry_after_ms=60000)
    assert 50 < case.database.value(wait) <= 60
    case.worker.report(case.until("upload"), outcome="failed", signal="http", http_status=429, retry_after_ms=999999999)
    assert 3500 < case.database.value(wait) <= 3600
