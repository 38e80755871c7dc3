"""l: everybody at once."""

from __future__ import annotations

import threading

from Benchmarks import gateway_peers, machine
from Benchmarks.full_answers import answered
from Benchmarks.installation import Installation
from Benchmarks.measuring import Figures, Result, Target, at_least, at_most, in_turns, medians
from Benchmarks.setting import Setting

STEADY = "the rate of 32 clients"


class Memory(threading.Thread):
    """Watches a process's memory."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.first, self.most = pid, machine.memory_mb(pid), 0.0
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.05):
            self.most = max(self.most, machine.memory_mb(self.pid))

    def stop(self) -> None:
        self._over.set()
        self.join()


def run(setting: Setting) -> list[Result]:
    requests, clients = setting.size(20_000, 400), setting.size(200, 20)

    def spike(installed: Installation) -> Figures:
        """`answered` fails where one was refused, lost or asked twice."""
        with installed.working() as (worker,):
            answered(installed, 100, clients=4)
            memory = Memory(worker.pid)
            memory.start()
            try:
                settled = answered(installed, requests, clients=clients)["settled"]
            finally:
                memory.stop()
        return {"settled": settled, "grown": memory.most - memory.first, "refused": 0}

    def steady(installed: Installation) -> Figures:
        with installed.working():
            return {"settled": answered(installed, requests // 2, clients=min(32, clients))["settled"]}

    with setting.installation() as installed, gateway_peers.running(setting, installed) as peers:
        installed.model("bench/chat")
        installed.warm_up("bench/chat")
        taken = in_turns(
            setting.rounds,
            {
                "spike": lambda: spike(installed),
                STEADY: lambda: steady(installed),
                **{peer.name: lambda peer=peer: peer.spike(clients) for peer in peers},
            },
        )
    names = [peer.name for peer in peers]
    what = f"{requests:,} requests at once from {clients} clients"
    return [
        Result("l", f"{what}: answered", "/s", taken["spike"]["settled"],
               {STEADY: taken[STEADY]["settled"]} | medians(taken, "settled", *names), [at_least(0.9, STEADY)]),
        Result("l", f"{what}: refused or lost", "%", taken["spike"]["refused"], medians(taken, "refused", *names),
               [Target(0, above=False)], more_is_better=False),
        Result("l", f"{what}: memory that the worker took on", "MB", taken["spike"]["grown"], {}, [at_most(40)],
               more_is_better=False),
    ]  # fmt: skip
