"""b: what one generation takes beyond the provider's own time, with one in flight."""

from __future__ import annotations

import contextlib

from Benchmarks import gateway_peers, queue_peers
from Benchmarks.installation import ANSWER, Installation, run_bench
from Benchmarks.measuring import Figures, Result, at_most, in_turns, medians
from Benchmarks.setting import Setting

DIRECT = "the provider's own time"


def run(setting: Setting) -> list[Result]:
    requests = setting.size(1_000, 30)

    def ours(installed: Installation) -> Figures:
        report = installed.bench("latency", model="bench/chat", requests=requests, warm_up=20, seconds=60)
        assert report["answered"] == requests, report
        return {name: report["answered_ms"][name] for name in ("p50", "p99")} | {"whole": report["whole_ms"]["p50"]}

    def direct(installed: Installation) -> Figures:
        report = run_bench(
            "http",
            f"{installed.simulator.base_url}/v1/chat/completions",
            model=f"sim-small+{ANSWER}",
            requests=requests,
        )
        assert not report["failed"], report
        return {name: report["answer_ms"][name] for name in ("p50", "p99")}

    with contextlib.ExitStack() as stack:
        installed = stack.enter_context(setting.installation())
        peers = stack.enter_context(gateway_peers.running(setting, installed))
        minimal = [stack.enter_context(queue_peers.minimal(setting))] if peers else []
        installed.model("bench/chat")
        installed.warm_up("bench/chat")
        with installed.working():
            taken = in_turns(
                setting.rounds,
                {
                    "ours": lambda: ours(installed),
                    DIRECT: lambda: direct(installed),
                    **{peer.name: lambda peer=peer: peer.answers(installed) for peer in minimal},
                    **{peer.name: lambda peer=peer: peer.latency() for peer in peers},
                },
            )
    names = [DIRECT, *(peer.name for peer in [*minimal, *peers])]
    what = "commit of the insert → answer committed and notified, 1 in flight"
    return [
        *(
            Result(
                "b",
                f"{what}, {name}",
                "ms",
                taken["ours"][name],
                medians(taken, name, *names),
                [at_most(target, DIRECT)],
                more_is_better=False,
            )
            for name, target in (("p50", 1.5), ("p99", 4))
        ),
        Result(
            "b",
            "before the insert is sent → answer notified, 1 in flight, p50",
            "ms",
            taken["ours"]["whole"],
            medians(taken, "p50", *names),
            more_is_better=False,
        ),
    ]
