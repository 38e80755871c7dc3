"""k: a worker that has nothing to do, and how soon it is there."""

from __future__ import annotations

import time

import resting as rest
from Benchmarks import gateway_peers, machine
from Benchmarks.installation import Installation
from Benchmarks.measuring import Figures, Result, at_most, in_turns, medians
from Benchmarks.setting import Setting


def started(installed: Installation) -> Figures:
    """From before the process is made until it has claimed what waits for it."""
    report = installed.bench("load", requests=1, clients=1, no_wait=True)
    assert report["inserted"] == 1
    began = time.time()
    worker = installed.worker(ready=False)
    installed.wait_until_all_ended(30)
    claimed = installed.database.value("select extract(epoch from max(started_at))::float8 from ai.generations")
    worker.terminate()
    return {"start": (claimed - began) * 1000}


def resting(setting: Setting, installed: Installation) -> list[Figures]:
    """Memory, statements and processor time of a worker that has answered something and has nothing to do now.

    Its statements are counted as `Tests/Counts` does.
    """
    seconds = setting.size(30.0, 2.0)
    windows = []
    with installed.working() as (worker,):
        installed.bench("load", requests=20, clients=1)
        time.sleep(setting.size(12, 1))
        for _ in range(setting.rounds):
            used = machine.processor_seconds(worker.pid)
            watched = rest.watch(installed.database, seconds)
            windows.append(
                {
                    "memory": machine.memory_mb(worker.pid),
                    "statements": watched.rate,
                    "cpu_ms": (machine.processor_seconds(worker.pid) - used) / watched.seconds * 1000,
                }
            )
    return windows


def run(setting: Setting) -> list[Result]:
    with setting.installation() as installed, gateway_peers.running(setting, installed) as peers:
        installed.database.execute("alter system set autovacuum = off")  # its transactions would be counted
        installed.database.execute("select pg_reload_conf()")
        try:
            installed.warm_up()
            starts = in_turns(setting.rounds, {"ours": lambda: started(installed)})["ours"]["start"]
            windows = resting(setting, installed)
        finally:
            installed.database.execute("alter system reset autovacuum")
            installed.database.execute("select pg_reload_conf()")
        rest = {peer.name: peer.rest() for peer in peers}
    ours = {figure: [window[figure] for window in windows] for figure in windows[0]} | {"start": starts}

    def of_peers(figure: str) -> dict[str, list[float]]:
        return medians({name: {key: [value] for key, value in rest[name].items()} for name in rest}, figure, *rest)

    return [
        Result("k", "memory of a resting worker", "MB", ours["memory"], of_peers("memory"), [at_most(40)],
               more_is_better=False),
        Result("k", "start of the process → first claim", "ms", ours["start"], of_peers("start"), [at_most(300)],
               more_is_better=False, remark="gateways: to the first answer"),
        Result("k", "statements of a resting worker", "/s", ours["statements"], {}, [at_most(1)],
               more_is_better=False),
        Result("k", "processor time of a resting worker", "ms/s", ours["cpu_ms"], {}, [], more_is_better=False),
    ]  # fmt: skip
