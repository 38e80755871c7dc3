"""i: four workers on one database, beside one."""

from __future__ import annotations

from Benchmarks.installation import Installation
from Benchmarks.local_answers import drained
from Benchmarks.measuring import Figures, Result, Target, at_least, in_turns
from Benchmarks.setting import Setting

WORKERS, ONE = 4, "1 worker"

_TWICE = """
select count(*) from (select generation_id from ai.llm_calls group by generation_id having count(*) > 1) twice
"""


def limited(setting: Setting, installed: Installation) -> Figures:
    """A limit with all workers at it: how many it let through."""
    amount, asked = setting.size(2_000, 30), setting.size(3_000, 50)
    member = installed.another_tenant("limited")
    installed.database.execute(
        "insert into ai.limits (tenant_id, metric, period, amount, on_limit)"
        " values (%s, 'requests', 'month', %s, 'reject')",
        member.tenant_id,
        amount,
    )
    with installed.working(WORKERS):
        report = installed.bench("load", requests=asked, clients=8, member=member)
    assert report["unfinished"] == 0, report
    return {"admitted": report["statuses"].get("succeeded", 0)}


def run(setting: Setting) -> list[Result]:
    rows, amount = setting.size(30_000, 500), setting.size(2_000, 30)
    with setting.installation() as installed:
        installed.warm_up()
        taken = in_turns(
            setting.rounds,
            {
                "ours": lambda: drained(installed, rows, WORKERS, concurrency=setting.size(256, 50)),
                ONE: lambda: drained(installed, rows, concurrency=setting.size(256, 50)),
            },
        )
        admitted = in_turns(1, {"ours": lambda: limited(setting, installed)})["ours"]["admitted"]
        twice = installed.database.value(_TWICE)
    return [
        Result("i", f"local no-op generations through {WORKERS} workers", "/s", taken["ours"]["rate"],
               {ONE: taken[ONE]["rate"]}, [at_least(1, ONE)]),
        Result("i", f"generations that {WORKERS} workers claimed twice", "", [twice], {}, [Target(0, above=False)],
               more_is_better=False, remark="counted over all rounds"),
        Result("i", f"a limit of {amount:,}, {WORKERS} workers, {setting.size(3_000, 50):,} asked: admitted", "",
               admitted, {}, [Target(amount, above=True), Target(amount, above=False)], remark="one round"),
    ]  # fmt: skip
