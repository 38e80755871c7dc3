"""d: from the commit of an insert until an idle worker has it."""

from __future__ import annotations

import contextlib

from Benchmarks import queue_peers
from Benchmarks.measuring import Figures, Result, at_most, in_turns, medians
from Benchmarks.setting import Setting


def run(setting: Setting) -> list[Result]:
    requests = setting.size(300, 20)
    with contextlib.ExitStack() as stack:
        installed = stack.enter_context(setting.installation())
        peers = stack.enter_context(queue_peers.installed(setting, installed))
        if peers:
            peers.append(stack.enter_context(queue_peers.minimal(setting)))

        def ours() -> Figures:
            report = installed.bench("latency", rate=50, requests=requests, stream=True, seconds=60)
            assert report["answered"] == requests, report
            return {name: report["claimed_ms"][name] for name in ("p50", "p99")}

        installed.warm_up()
        with installed.working():
            taken = in_turns(
                setting.rounds, {"ours": ours, **{peer.name: lambda peer=peer: peer.pickup() for peer in peers}}
            )
    names = [peer.name for peer in peers]
    what = "commit of the insert → claim committed and notified, 50/s"
    return [
        Result(
            "d",
            f"{what}, p50",
            "ms",
            taken["ours"]["p50"],
            medians(taken, "p50", *names),
            [at_most(0.8)],
            more_is_better=False,
        ),
        Result(
            "d",
            f"{what}, p99",
            "ms",
            taken["ours"]["p99"],
            medians(taken, "p99", *names),
            [at_most(2.5)],
            more_is_better=False,
        ),
    ]
