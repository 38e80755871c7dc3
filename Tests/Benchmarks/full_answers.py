"""a: full chat generations against a provider that answers at once, with books kept and nothing lost."""

from __future__ import annotations

from Benchmarks import gateway_peers
from Benchmarks.installation import Installation, run_bench, settle_down
from Benchmarks.measuring import Figures, Result, at_least, in_turns, medians
from Benchmarks.setting import Setting


def answered(installed: Installation, requests: int, **options: object) -> Figures:
    """One load whose every generation must have its answer, its call on the books and its request at the provider."""
    before = installed.provider_says("answered"), _books(installed)
    report = installed.bench("load", model="bench/chat", requests=requests, seconds=120, **options)
    assert report["statuses"] == {"succeeded": requests}, report
    assert not report["refused"], report
    calls = _books(installed) - before[1]
    sent = installed.provider_says("answered") - before[0]
    assert calls == sent == requests, f"{requests} asked, {calls} on the books, {sent} at the provider"
    settle_down(installed.database)
    return {"settled": report["settled_per_second"], "inserted": report["inserted_per_second"]}


def _books(installed: Installation) -> int:
    return installed.database.value("select count(*) from ai.llm_calls where status = 'succeeded' and cost is not null")


def run(setting: Setting) -> list[Result]:
    requests = setting.size(10_000, 200)
    with setting.installation() as installed, gateway_peers.running(setting, installed) as peers:
        installed.model("bench/chat")
        installed.warm_up("bench/chat")
        with installed.working():
            taken = in_turns(
                setting.rounds,
                {
                    "single": lambda: answered(installed, requests, clients=32),
                    "batches": lambda: answered(installed, requests, clients=4, batch=100),
                    "the provider, asked directly": lambda: asked_directly(setting, installed),
                    **{peer.name: lambda peer=peer: peer.rate() for peer in peers},
                },
            )
    names = ["the provider, asked directly", *(peer.name for peer in peers)]
    targets = [at_least(3_500), at_least(2.5, gateway_peers.TENSORZERO), at_least(13, gateway_peers.LITELLM)]
    rates = medians(taken, "rate", *names)
    return [
        Result(
            "a",
            "full chat generations, single-row inserts, 32 clients",
            "/s",
            taken["single"]["settled"],
            rates,
            targets,
        ),
        Result(
            "a",
            "full chat generations, inserts of 100 rows, 4 clients",
            "/s",
            taken["batches"]["settled"],
            rates,
            [at_least(5_000)],
        ),
    ]


def asked_directly(setting: Setting, installed: Installation) -> Figures:
    report = run_bench(
        "http",
        f"{installed.simulator.base_url}/v1/chat/completions",
        connections=64,
        requests=setting.size(20_000, 200),
        seconds=5,
    )
    assert not report["failed"], report
    return {"rate": report["per_second"]}
