"""The benchmarks' own tools: they count what they say they count, and judge as they should. No time is judged here."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from Benchmarks import __main__ as program
from Benchmarks import installation, machine, page, progress
from Benchmarks.installation import Installation, run_bench
from Benchmarks.measuring import Result, at_least, at_most, in_turns
from Benchmarks.setting import Setting


@pytest.fixture(scope="module")
def installed(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """One installation for all tests here."""
    with installation.opened(server, tmp_path_factory.mktemp("bench")) as installed:
        installed.model("bench/chat")
        installed.model("bench/stream", "ttft=5;rate=200;tokens=12")
        yield installed


@pytest.mark.parametrize(("value", "met"), [(99.9, False), (100, True), (100.1, True)])
def test_a_target_to_be_reached_is_met_at_and_above_it(value: float, met: bool) -> None:
    assert at_least(100).met(value, {}) is met
    assert at_least(100, "peer").met(value * 2, {"peer": 2}) is met


@pytest.mark.parametrize(("value", "met"), [(1.49, True), (1.5, True), (1.51, False)])
def test_a_target_to_be_kept_is_met_at_and_below_it(value: float, met: bool) -> None:
    assert at_most(1.5).met(value, {}) is met
    assert at_most(1.5, "upstream").met(value + 8, {"upstream": 8}) is met


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    row = Result("a", "what", "/s", [5.0], {}, [at_least(2, "somebody")]).as_json({})
    assert row["met"] is None
    assert "not measured" in page.verdict(row)


def test_one_missed_target_makes_a_row_missed() -> None:
    row = Result("a", "what", "/s", [10, 30, 20], {"peer": [4, 5, 6]}, [at_least(20), at_least(5, "peer")]).as_json({})
    assert (row["ours"], row["ratio"]) == (20, {"peer": 4})
    assert [verdict["met"] for verdict in row["verdicts"]] == [True, False]
    assert row["met"] is False


def test_a_ratio_above_one_is_better_whichever_way_better_is() -> None:
    rate = Result("a", "rate", "/s", [10], {"peer": [5]}).as_json({})
    time = Result("b", "time", "ms", [5], {"peer": [10]}, more_is_better=False).as_json({})
    assert rate["ratio"] == time["ratio"] == {"peer": 2}


def test_what_takes_too_long_is_ended_and_says_where_it_was() -> None:
    ended = []
    before = signal.getsignal(signal.SIGALRM)

    def round_without_end() -> dict[str, float]:
        try:
            time.sleep(60)
        finally:
            ended.append("tidied up")
        return {}

    with pytest.raises(progress.TimeIsUpError, match=r"round 1 of 2, somebody"), progress.within(2):
        in_turns(2, {"somebody": round_without_end})
    assert ended == ["tidied up"]
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_benchmark_that_fails_costs_no_other_its_result(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is known is written before the next one begins; a failure leaves the older result beside its reason."""
    newest, readable = tmp_path / "newest.json", tmp_path / "page.md"
    readable.write_text(f"{page.BEGIN}\n{page.END}\n")
    monkeypatch.setattr(program, "NEWEST", newest)
    monkeypatch.setattr(program, "PAGE", readable)
    monkeypatch.setattr(program, "REPOSITORY", tmp_path)
    monkeypatch.setenv("MARTLET_TEST_DATABASE_URL", server)
    hangs = False

    def benchmark(letter: str, value: float) -> tuple[program.Benchmark, float]:
        def run(setting: Setting) -> list[Result]:
            if hangs and letter == "b":
                assert known() == {"a": 2.0, "b": 3.0, "c": 4.0}, "the first of them is written by now"
                time.sleep(60)
            return [Result(letter, "what", "/s", [value])]

        return run, 1.0

    def known() -> dict[str, float]:
        return {row["benchmark"]: row["ours"] for row in json.loads(newest.read_text())["results"]}

    monkeypatch.setattr(program, "BENCHMARKS", {name: benchmark(name, n) for n, name in enumerate("abc", 2)})
    assert program.main([]) == 0
    assert known() == {"a": 2.0, "b": 3.0, "c": 4.0}
    hangs = True
    monkeypatch.setattr(program, "BENCHMARKS", program.BENCHMARKS | {"c": benchmark("c", 5)})
    assert program.main([]) == 1
    assert known() == {"a": 2.0, "b": 3.0, "c": 5.0}
    assert "b: not done within 1 s, while b" in readable.read_text()
    assert "b  not measured: not done" in capsys.readouterr().out
    hangs = False
    assert program.main(["b"]) == 0
    assert "not done" not in readable.read_text()


def test_contenders_take_turns_and_nobody_is_always_first() -> None:
    order: list[str] = []

    def run(name: str) -> dict[str, float]:
        order.append(name)
        return {"rate": len(order)}

    taken = in_turns(3, {"x": lambda: run("x"), "y": lambda: run("y"), "z": lambda: run("z")})
    assert "".join(order) == "xyzyzxzxy"
    assert taken["y"]["rate"] == [2, 4, 9]


def test_the_page_keeps_what_people_wrote_and_shows_every_row(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text(f"# Title\n\n{page.BEGIN}\nold\n{page.END}\n\n## After\n")
    with machine.Watch() as watch:
        pass
    conditions = watch.conditions | machine.description() | {"postgres": "18.0"}
    row = Result("a", "answers | of a kind", "/s", [3_600], {"peer": [1_200]}, [at_least(3_500)]).as_json(conditions)
    for _ in range(2):
        page.write(file, [row], {"b": "it broke"})
    text = file.read_text()
    assert text.startswith("# Title\n")
    assert text.endswith("## After\n")
    assert "old" not in text
    expected = "| a | answers \\| of a kind | 3 × peer | 3,600 /s | peer 1,200 | ≥ 3,500 /s: met |"
    assert text.count(expected) == 1
    assert "- b: it broke" in text
    assert str(Path.home()) not in json.dumps(row)
    assert "3,600 /s" in page.plain([row])


def test_the_published_page_has_its_marks() -> None:
    text = (installation.REPOSITORY / "docs/benchmarks.md").read_text()
    assert text.index(page.BEGIN) < text.index(page.END)


def test_a_load_counts_every_generation_that_it_inserted_and_every_end(installed: Installation) -> None:
    before = installed.provider_says("answered")
    with installed.working():
        single = installed.bench("load", model="bench/chat", clients=5, requests=57)
        batches = installed.bench("load", model="bench/chat", clients=2, requests=57, batch=10)
    for report in (single, batches):
        assert report["inserted"] == 57
        assert report["statuses"] == {"succeeded": 57}
        assert report["unfinished"] == 0
        assert report["refused"] == {}
    assert single["insert_ms"]["count"] == 57
    assert batches["insert_ms"]["count"] == 6  # five of 10 and one of 7
    assert installed.provider_says("answered") - before == 114
    assert installed.database.value("select count(*) from ai.llm_calls where status = 'succeeded'") == 114


def test_a_load_says_what_was_refused_and_what_did_not_end(installed: Installation) -> None:
    refused = installed.bench("load", model="bench/none", clients=2, requests=6)
    assert (refused["inserted"], refused["refused"]) == (0, {"PT404": 6})
    waiting = installed.bench("load", model="bench/chat", clients=1, requests=3, seconds=1)
    assert (waiting["unfinished"], waiting["statuses"]) == (3, {"queued": 3})
    with installed.working():
        installed.wait_until_all_ended(30)


def test_latencies_are_those_of_all_generations_but_the_first(installed: Installation) -> None:
    with installed.working():
        report = installed.bench("latency", model="bench/stream", requests=12, warm_up=3, stream=True, seconds=30)
    assert report["answered"] == report["requests"] == 12
    assert report["claimed_ms"]["count"] == report["answered_ms"]["count"] == report["insert_ms"]["count"] == 12
    assert report["answered_ms"]["p50"] <= report["answered_ms"]["p99"] <= report["answered_ms"]["max"]


def test_every_stream_is_followed_to_its_end_without_a_gap(installed: Installation) -> None:
    with installed.working():
        report = installed.bench("streams", model="bench/stream", count=20, listeners=3, per_second=200, seconds=30)
    assert report["complete"] == report["streams"] == report["first_delta_ms"]["count"] == 20
    stored = installed.database.value(
        "select sum(last_seq) from (select last_seq from ai.generations where stream order by id desc limit 20) g"
    )
    assert report["events"] == stored


def test_a_gateway_is_asked_as_often_as_is_said(installed: Installation) -> None:
    url = f"{installed.simulator.base_url}/v1/chat/completions"
    whole = run_bench("http", url, model="sim-small", connections=4, requests=33)
    assert (whole["answered"], whole["failed"], whole["answer_ms"]["count"]) == (33, {}, 33)
    streamed = run_bench("http", url, model="sim-small+tokens=7", connections=2, requests=4, stream=True)
    assert (streamed["answered"], streamed["events"] // 4 >= 7) == (4, True)
    failing = run_bench("http", url, model="sim-small+status=503", connections=2, requests=5)
    assert (failing["answered"], failing["failed"]) == (0, {"503": 5})
