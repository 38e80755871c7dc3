"""g: many streams through one worker, each followed to its end over few listening connections; and idle ones, held."""

from __future__ import annotations

import waiting
from Benchmarks import gateway_peers, machine
from Benchmarks.installation import Installation
from Benchmarks.measuring import Figures, Result, at_most, in_turns, medians
from Benchmarks.setting import Setting

FIRST_TOKEN_MS, A_SECOND = 100, 20
# What the first token is judged by. Where processors are short the provider is late, too, and a worker that is late in
# reading makes it look later: what the worker saw is shown, and is no excuse.
TOLD = "what the provider was told to take"
SEEN_BY_WORKER = "the provider's first token, as the worker saw it"


def streamed(setting: Setting, installed: Installation) -> Figures:
    """A thousand streams at once; the processor time is that of the worker alone, from when it was ready."""
    count, tokens = setting.size(1_000, 20), setting.size(100, 10)
    before = installed.database.value("select coalesce(max(id::text), '') from ai.generations")
    with installed.working(concurrency=count + 100) as (worker,):
        ready = machine.processor_seconds(worker.pid)
        report = installed.bench("streams", model="bench/stream", count=count, listeners=8, per_second=500, seconds=90)
        seconds, memory = machine.processor_seconds(worker.pid) - ready, machine.memory_mb(worker.pid, peak=True)
    assert report["complete"] == report["streams"] == count, report
    events = count * tokens
    seen = installed.database.value(
        "select percentile_cont(0.5) within group (order by ttft_ms) from ai.llm_calls where generation_id::text > %s",
        before,
    )
    return {
        "cpu_us": seconds / events * 1e6,
        "memory": memory,
        "first": report["first_delta_ms"]["p50"],
        "seen": seen,
        "deltas": report["deltas"] / events,
    }


def idle(setting: Setting, installed: Installation) -> Figures:
    """Streams that have begun and say nothing."""
    count = setting.size(10_000, 50)
    worker = installed.worker(concurrency=count)
    installed.bench("load", model="bench/idle", requests=count, clients=2, batch=1_000, stream=True, no_wait=True)
    waiting.until(lambda: installed.provider_says("in_flight") >= count, f"{count} streams", 90, every=0.2)
    memory = machine.memory_mb(worker.pid)
    worker.kill()
    return {"memory": memory}


def run(setting: Setting) -> list[Result]:
    tokens = setting.size(100, 10)
    with setting.installation() as installed, gateway_peers.running(setting, installed) as peers:
        installed.model("bench/stream", f"ttft={FIRST_TOKEN_MS};rate={A_SECOND};tokens={tokens}")
        installed.model("bench/idle", "ttft=300000;tokens=2")
        installed.warm_up("local/extract")
        taken = in_turns(
            setting.rounds,
            {
                "ours": lambda: streamed(setting, installed),
                **{peer.name: lambda peer=peer: peer.stream() for peer in peers},
            },
        )
        held = in_turns(1, {"ours": lambda: idle(setting, installed)})["ours"]["memory"]
    names = [peer.name for peer in peers]
    ours = taken["ours"]
    what = f"{setting.size(1_000, 20):,} streams × {A_SECOND} events/s, 8 listening connections"
    direct = {TOLD: [float(FIRST_TOKEN_MS)] * len(ours["first"]), SEEN_BY_WORKER: ours["seen"]}
    return [
        Result("g", f"{what}: worker CPU an event", "µs", ours["cpu_us"], medians(taken, "cpu_us", *names),
               [at_most(25)], more_is_better=False,
               remark=f"one event of the provider; {ours['deltas'][0]:.2f} deltas were announced for each"),
        Result("g", f"{what}: first token, from the commit of the insert, p50", "ms", ours["first"], direct,
               [at_most(3, TOLD)], more_is_better=False),
        Result("g", f"{what}: most memory of the worker", "MB", ours["memory"], medians(taken, "memory", *names),
               [at_most(120)], more_is_better=False),
        Result("g", f"{setting.size(10_000, 50):,} idle streams held: memory of the worker", "MB", held, {},
               [at_most(500)], more_is_better=False, remark="one round"),
    ]  # fmt: skip
