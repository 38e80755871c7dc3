"""Any text and any size goes in and comes out as it is, or is refused at once with a clear error."""

from __future__ import annotations

import json
from collections.abc import Callable
from urllib.parse import quote

import psycopg
import pytest
from databases import Database, Member, refused
from echo import EchoProvider
from processes import Simulator, Worker
from psycopg.types.json import Jsonb
from simulated import Providers, all_ended, books_are_consistent, calls, ended

TEXTS = {
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 🇨🇭 👍🏽",
    "beyond the basic plane": "𝔐𝔞𝔯𝔱𝔩𝔢𝔱 𐍈 𝄞",
    "right to left": "مرحبا بالعالم שלום \u202eabc\u202c",
    "controls": "".join(map(chr, range(1, 32))) + "\x7f\x85\u2028\u2029\ufeff",
    "noncharacters": "\ufffe\uffff\U0010ffff",
    "combining": "Z̸̢͝a̶l͜g̴o " * 3,
    "json and sql": """{"a": "\\u0041"}'; drop table ai.generations; -- \\ " $1 %s \\x00 \\ud800""",
    "sse": "data: [DONE]\n\nevent: message_stop\r\n\r\ndata: {}\n\n: comment",
    "lines": "\r\n\n\r\t" + "end",
}


def test_any_text_reaches_the_provider_and_comes_back_as_it_is(
    database: Database, member: Member, worker: Callable[..., Worker]
) -> None:
    app = database.connect(user=member)
    asked = {}
    with EchoProvider() as echo:
        database.model(database.provider("echo", echo.base_url), "echo")
        worker(database)
        for stream in (False, True):
            for title, text in TEXTS.items():
                asked[title, stream] = app.execute(
                    "insert into ai.generations (prompt, model, stream) values (%s, 'echo', %s) returning id",
                    [text, stream],
                ).fetchone()["id"]
        for (title, stream), generation_id in asked.items():
            row = ended(database, generation_id)
            assert row["status"] == "succeeded", f"{title}: {row['error']}"
            assert row["output"] == TEXTS[title], title
            if stream:
                stream_events = "select data from ai.read_stream(%s) where type = 'delta'"
                events = app.execute(stream_events, [generation_id]).fetchall()
                assert "".join(event["data"]["text"] for event in events) == TEXTS[title], title
    books_are_consistent(database)


def test_any_text_comes_back_from_anthropic(
    database: Database, member: Member, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    providers = Providers(database, simulator)
    worker(database)
    app = database.connect(user=member)
    asked = {}
    for stream in (False, True):
        for title, text in TEXTS.items():
            model = providers.model(f"answer={quote(text, safe='')}", "anthropic")
            asked[title, stream] = app.execute(
                "insert into ai.generations (prompt, model, stream) values ('x', %s, %s) returning id", [model, stream]
            ).fetchone()["id"]
    for (title, _), generation_id in asked.items():
        row = ended(database, generation_id)
        assert row["status"] == "succeeded", f"{title}: {row['error']}"
        assert row["output"] == TEXTS[title], title
    books_are_consistent(database)


@pytest.mark.parametrize("size", [10_000, 100_000, 1_000_000])
def test_a_long_prompt_reaches_the_provider_whole(
    database: Database, member: Member, worker: Callable[..., Worker], size: int
) -> None:
    app = database.connect(user=member)
    prompt = ("Ünïcödé 👍 und so weiter. " * (size // 20 + 1)).encode()[:size].decode(errors="ignore")
    with EchoProvider() as echo:
        database.model(database.provider("echo", echo.base_url), "echo")
        worker(database)
        for stream in (False, True):
            generation_id = app.execute(
                "insert into ai.generations (prompt, model, stream) values (%s, 'echo', %s) returning id",
                [prompt, stream],
            ).fetchone()["id"]
            row = ended(database, generation_id)
            assert row["status"] == "succeeded", row["error"]
            assert row["output"] == prompt
        assert [body["messages"][-1]["content"] == prompt for body in echo.bodies] == [True, True]
    books_are_consistent(database)


def test_a_long_answer_comes_back_whole_and_its_notifications_fit(
    database: Database, member: Member, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    providers = Providers(database, simulator)
    worker(database)
    app = database.connect(user=member)
    model = providers.model("big=1000000")
    for stream in (False, True):
        generation_id = app.execute(
            "insert into ai.generations (prompt, model, stream) values ('Much!', %s, %s) returning id", [model, stream]
        ).fetchone()["id"]
        row = ended(database, generation_id)
        assert row["status"] == "succeeded", row["error"]
        assert len(row["output"].encode()) == 1_000_000
    text, after = "", 0
    while events := app.execute("select * from ai.read_stream(%s, %s)", [generation_id, after]).fetchall():
        text += "".join(event["data"].get("text", "") for event in events)
        after = events[-1]["seq"]
    assert text == row["output"]


def test_a_prompt_over_the_limit_is_refused_with_its_size(database: Database, member: Member) -> None:
    app = database.connect(user=member)
    with refused("PT413"):
        app.execute("select ai.generate(prompt => repeat('x', 4194305))")
    assert database.value("select count(*) from ai.generations") == 0


def test_nul_and_lone_surrogates_are_refused_before_anything_is_stored(database: Database, member: Member) -> None:
    app = database.connect(user=member)
    with pytest.raises(psycopg.DataError):  # the driver's own refusal: no text of PostgreSQL has NUL
        app.execute("select ai.generate(prompt => %s)", ["a\0b"])
    with pytest.raises(UnicodeEncodeError):
        app.execute("select ai.generate(prompt => %s)", ["a\ud800b"])
    for escape, code in (("\\u0000", "22P05"), ("\\ud800", "22P02"), ("\\udc00\\ud800", "22P02")):
        with refused(code):
            app.execute(
                "insert into ai.generations (messages) values (%s::text::jsonb)",
                [json.dumps([{"role": "user", "content": "a!b"}]).replace("!", escape)],
            )
    assert app.execute("select 1 as one").fetchone() == {"one": 1}
    assert database.value("select count(*) from ai.generations") == 0


@pytest.mark.parametrize("dialect", ["openai", "anthropic", "gemini"])
@pytest.mark.parametrize("directive", ["nul", "surrogate"])
def test_an_answer_with_nul_or_a_lone_surrogate_is_kept_without_it(
    database: Database,
    member: Member,
    simulator: Simulator,
    worker: Callable[..., Worker],
    directive: str,
    dialect: str,
) -> None:
    providers = Providers(database, simulator)
    worker(database)
    app = database.connect(user=member)
    model = providers.model(f"answer=before+and+after;{directive}", dialect)
    neighbour = providers.model("answer=the+neighbour")
    asked = []
    for stream in (False, True):
        row = app.execute(
            "insert into ai.generations (prompt, model, stream) values ('x', %s, %s), ('y', %s, %s) returning id",
            [model, stream, neighbour, stream],
        ).fetchall()
        asked += [one["id"] for one in row]
    for generation_id in asked:
        row = ended(database, generation_id)
        assert row["status"] == "succeeded", row["error"]
        if row["model"] == model:
            assert row["output"].startswith("before and after") or "before and after" in row["output"].replace(
                "\ufffd", ""
            )
        else:
            assert row["output"] == "the neighbour"
        (call,) = calls(database, generation_id)
        assert not call["estimated"]
    books_are_consistent(database)


def test_messages_tools_and_parameters_of_every_kind_reach_the_provider(
    database: Database, member: Member, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    providers = Providers(database, simulator)
    worker(database)
    app = database.connect(user=member)
    tools = [
        {
            "type": "function",
            "function": {
                "name": "weather",
                "description": "The weather 🌦",
                "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
            },
        }
    ]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Bern?"}]
    for dialect in ("openai", "anthropic", "gemini"):
        for stream in (False, True):
            model = providers.model('tool=weather;args={"place":"Bern 🐻"}', dialect)
            generation_id = app.execute(
                "insert into ai.generations (messages, model, stream, params) values (%s, %s, %s, %s) returning id",
                [Jsonb(messages), model, stream, Jsonb({"tools": tools, "max_tokens": 50})],
            ).fetchone()["id"]
            row = ended(database, generation_id)
            assert row["status"] == "succeeded", row["error"]
            assert row["finish_reason"] == "tool_calls"
            (call,) = row["output_message"]["tool_calls"]
            assert call["function"]["name"] == "weather"
            assert json.loads(call["function"]["arguments"]) == {"place": "Bern 🐻"}


def test_100000_rows_in_one_statement_are_all_answered(
    database: Database, member: Member, worker: Callable[..., Worker]
) -> None:
    app = database.connect(user=member)
    app.execute(
        "insert into ai.generations (prompt, kind, model)"
        " select 'text number ' || n, 'chat', 'local/extract' from generate_series(1, 100000) n"
    )
    process = worker(database, concurrency=256)
    all_ended(database, 200)
    assert process.running
    assert database.value("select count(*) from ai.generations where status = 'succeeded'") == 100_000
    assert database.value("select count(*) from ai.llm_calls where cost = 0") == 100_000
    books_are_consistent(database)
