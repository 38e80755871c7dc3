"""Costs over LiteLLM's whole price map against a calculation that shares nothing with Martlet's; and the import."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import price_map
import pytest
from databases import Database
from price_map import Use

REPOSITORY = Path(__file__).resolve().parent.parent.parent
UNITS = [
    *("requests", "queries", "images", "images:1k", "images:2k", "images:512", "input_images", "pixels", "seconds"),
    *("seconds:720p", "seconds:1080p", "input_seconds:audio", "input_seconds:video", "characters", "output_characters"),
    *("pages", "annotated_pages", "searches", "searches:low", "searches:high", "map_searches", "code_sessions"),
    *("messages", "credits"),
]


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    state = subprocess.run(
        [REPOSITORY / "scripts/state"], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    return price_map.fetched(Path(state.strip()), tmp_path_factory.mktemp("litellm"))


@pytest.fixture(scope="session")
def chance() -> random.Random:
    seed = int(os.environ.get("MARTLET_SEED", random.randrange(1_000_000)))
    print(f"MARTLET_SEED={seed}")
    return random.Random(seed)


def drawn(chance: random.Random, members: dict[str, Any]) -> Use:
    """A call around the thresholds that this entry has, with parts of every medium."""
    edges = [
        int(digits) * 1000
        for key in members
        for digits in ["".join(filter(str.isdigit, key.partition("_above_")[2].partition("k_tokens")[0]))]
        if digits
    ]
    edges += [int(tier["range"][0]) for tier in members.get("tiered_pricing") or [] if tier.get("range")]
    use = Use(
        input=max(0, chance.choice([*edges, 1000, 200_000]) + chance.choice([-1, 0, 1, 7, chance.randrange(300_000)]))
    )
    parts = sorted(chance.randrange(use.input + 1) for _ in range(4))
    if chance.random() < 0.7:
        use.cache_read, use.cache_write, use.cache_write_1h = parts[0], parts[1] - parts[0], parts[2] - parts[1]
    use.output = chance.randrange(50_000)
    use.reasoning = chance.choice([0, chance.randrange(use.output + 1)])
    for medium in price_map.MEDIA:
        if chance.random() < 0.4:
            for part, whole in (
                ("input", use.input),
                ("cache_read", use.cache_read),
                ("cache_write", use.cache_write),
                ("output", use.output),
            ):
                use.units[f"{medium}_{part}"] = Decimal(chance.randrange(1, whole + 2))
    for name in ("cache_write_12h", "citations"):
        if chance.random() < 0.3:
            use.units[name] = Decimal(chance.randrange(1, 5000))
    for name in chance.sample(UNITS, 5):
        use.units[name] = (
            Decimal(chance.randrange(1, 10 ** chance.randrange(1, 8))).scaleb(-chance.randrange(0, 7)).normalize()
        )
    use.service_tier = chance.choice([None, "default", "batch", "flex", "priority", "ultrafast", "balanced", "fast"])
    return use


def test_a_thousand_calls_over_the_whole_map_cost_what_an_independent_calculation_says(
    database: Database, text: str, chance: random.Random
) -> None:
    entries = price_map.read(text)
    # Every mode and every member of the map that is about money comes up; the rest is drawn.
    chosen: dict[str, None] = {}
    by_member: dict[str, list[str]] = {}
    for key, members in entries.items():
        for member in members:
            if "cost" in member or "pricing" in member:
                by_member.setdefault(member, []).append(key)
    for keys in by_member.values():
        chosen.update(dict.fromkeys(chance.sample(keys, min(3, len(keys)))))
    keys = list(chosen)
    keys += chance.choices(list(entries), k=max(0, 1000 - len(keys)))
    uses = [drawn(chance, entries[key]) for key in keys]
    wanted = [price_map.cost(entries[key], use) for key, use in zip(keys, uses, strict=True)]

    database.execute("create table public.entries as select * from jsonb_each(%s::jsonb)", text)
    calls = [
        {
            "key": key,
            **{name: value for name, value in vars(use).items() if name != "units"},
            "units": {name: str(amount) for name, amount in use.units.items()},
        }
        for key, use in zip(keys, uses, strict=True)
    ]
    rows = database.execute(
        """
        select c.key, r.rates, ai.token_cost(r.rates, c.input, c.cache_read, c.cache_write, c.cache_write_1h,
                      c.output, c.reasoning, ai.billed_units(c.units, null, true), c.service_tier) as cost
          from rows from (jsonb_to_recordset(%s::jsonb) as (
                 key text, input bigint, cache_read bigint, cache_write bigint, cache_write_1h bigint, output bigint,
                 reasoning bigint, units jsonb, service_tier text)) with ordinality c
          join public.entries e on e.key = c.key
         cross join lateral ai.map_rates(e.value) r
         order by c.ordinality
        """,
        json.dumps(calls),
    )
    assert len(rows) == len(keys) >= 1000
    wrong = [
        (key, use, row["rates"], row["cost"], expected)
        for key, use, row, expected in zip(keys, uses, rows, wanted, strict=True)
        if row["cost"] != expected
    ]
    assert not wrong, f"{len(wrong)} of {len(keys)}:\n" + "\n".join(map(str, wrong[:3]))
    assert sum(1 for expected in wanted if expected > 0) > 800


def test_the_whole_map_is_understood_but_for_what_is_known_not_to_be(database: Database, text: str) -> None:
    rows = database.execute(
        "select e.key, r.rates, r.not_understood, k.kind from jsonb_each(%s::jsonb) e, ai.map_rates(e.value) r, "
        "ai.map_model(e.value) k where e.key <> 'sample_spec'",
        text,
    )
    strange = Counter(name for row in rows for name in row["not_understood"] or [])
    assert {name.partition("_above")[0].removesuffix("_decisions") for name in strange} == {
        "regional_endpoint_uplift_multiplier",
        "regional_processing_uplift_multiplier_eu",
        "regional_processing_uplift_multiplier_us",
        "provider_specific_entry.us",
        "provider_specific_entry.dashscope_video_reference_input",
        "provider_specific_entry.volcengine_video_frames",
        "provider_specific_entry.minimax_free_input_images",
        "cost_per_second",
        "off_peak_pricing",
        "input_cost_per_video_per_second",
        "tiered_pricing",
        "guardrail_cost_per_unit",
        "input_cost_per_token",
        "cache_read_input_token_cost",
        "cache_creation_input_token_cost",
    }
    # Every model of a kind that can be asked here has a price, but for those about which the map says too little.
    refused = []
    for row in rows:
        if row["kind"] and row["rates"]:
            try:
                database.execute("select ai.check_rates(%s, %s)", json.dumps(row["rates"], default=str), row["kind"])
            except Exception as error:
                refused.append((row["key"], str(error)))
    assert len(refused) <= 3, refused


def test_a_second_import_changes_nothing_and_a_changed_price_makes_one_version(database: Database, text: str) -> None:
    database.execute("create table public.map as select %s::jsonb as entries", text)
    tried = database.execute(
        "select i.* from public.map, ai.import_prices(entries, add => '{openai,anthropic}', dry_run => true) i"
    )
    assert database.value("select count(*) from ai.models where provider_id > 1") == 0, "a dry run writes nothing"
    first = database.execute("select i.* from public.map, ai.import_prices(entries, add => '{openai,anthropic}') i")
    assert [(row["model"], row["what"], row["price"]) for row in tried] == [
        (row["model"], row["what"], row["price"]) for row in first
    ], "and says what would be written"
    assert len(first) > 150
    assert {row["what"] for row in first} == {"added"}
    models, prices = database.value("select count(*) from ai.models"), database.value("select count(*) from ai.prices")
    second = database.execute("select i.* from public.map, ai.import_prices(entries, add => '{openai,anthropic}') i")
    assert {row["what"] for row in second} == {"kept"}
    assert {row["price"] for row in second} <= {"same", "no price"}
    assert database.value("select count(*) from ai.models") == models
    assert database.value("select count(*) from ai.prices") == prices
    third = database.execute(
        """
        select i.* from public.map,
          ai.import_prices(jsonb_set(entries, '{text-embedding-3-small,input_cost_per_token}', '3e-8'),
                           valid_from => now() + interval '1 day') i
        """
    )
    changed = [row for row in third if row["price"] == "repriced"]
    assert [(row["model"], row["old_rates"]["input"], row["new_rates"]["input"]) for row in changed] == [
        ("openai/text-embedding-3-small", 0.02, 0.03)
    ]
    assert database.value("select count(*) from ai.prices") == prices + 1


def test_the_catalog_has_the_prices_of_the_map_and_every_model_of_it_is_bounded(database: Database, text: str) -> None:
    catalog = (REPOSITORY / "catalog/catalog.json").read_text(encoding="utf-8")
    loaded = database.execute("select * from ai.load_catalog(%s)", catalog)
    assert {row["what"] for row in loaded} <= {"added", "kept"}
    assert {row["price"] for row in loaded if "/" in row["name"]} == {"priced"}
    assert {row["price"] for row in database.execute("select * from ai.load_catalog(%s)", catalog)} == {"same", None}
    database.execute("create table public.map as select %s::jsonb as entries", text)
    checked = database.execute("select i.* from public.map, ai.import_prices(entries, dry_run => true) i")
    assert [(row["model"], row["what"], row["price"]) for row in checked if row["price"] != "same"] == []
    unbounded = database.execute(
        """
        select m.name from ai.models m join ai.prices p on p.model_id = m.id
         where ai.most_cost(p.rates, m.kind, '{}', 100000, coalesce(m.max_output_tokens, 0), 60) is null
        """
    )
    assert unbounded == []


def test_the_catalog_names_the_variant_of_each_host_that_has_one() -> None:
    page = (REPOSITORY / "docs/providers.md").read_text(encoding="utf-8")
    variants = {url: name for name, url in re.findall(r"^\| `(\w+)` \| `(https://[^`]+)` \|", page, re.MULTILINE)}
    catalog = json.loads((REPOSITORY / "catalog/catalog.json").read_text(encoding="utf-8"))
    said = {
        provider["base_url"]: provider.get("options", {}).get("variant")
        for provider in catalog["providers"]
        if provider["base_url"] in variants
    }
    assert said == variants
    assert len(said) == 5


def test_an_operator_loads_the_catalog_and_nobody_else_does(
    database: Database, text: str, tmp_path: Path, martlet_bin: Path
) -> None:
    def catalog(*arguments: str, url: str = database.url, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [martlet_bin, "catalog", *arguments],
            env={**os.environ, "DATABASE_URL": url},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )

    shown = json.loads(catalog("show").stdout)
    assert shown == json.loads((REPOSITORY / "catalog/catalog.json").read_text(encoding="utf-8"))
    assert all(provider["name"] in catalog("list").stdout for provider in shown["providers"])
    tried = catalog("load", "--provider", "mistral", "--dry-run", "--json")
    assert {json.loads(line)["what"] for line in tried.stdout.splitlines()} == {"added"}
    assert database.value("select count(*) from ai.providers where name = 'mistral'") == 0
    assert catalog("load", "--provider", "mistral").returncode == 0
    assert database.value("select count(*) from ai.models where name like 'mistral/%%'") > 3
    prices = tmp_path / "map.json"
    prices.write_text(text, encoding="utf-8")
    assert catalog("import", str(prices)).stdout == "", "nothing new"
    changed = json.loads(text)
    changed["mistral/mistral-embed"]["input_cost_per_token"] = 7e-7
    told = catalog("import", "-", stdin=json.dumps(changed)).stdout
    assert told.split() == ["mistral/mistral-embed", "kept,", "repriced"]
    for arguments, said in (
        (("load", "--provider", "nobody"), "PT404"),
        (("import", "-"), "22P02"),
        (("import", str(tmp_path / "none")), "cannot read"),
    ):
        failed = catalog(*arguments, stdin="{")
        assert failed.returncode == 1
        assert said in failed.stderr
    refused = catalog("load", url=database.member(role="admin").url)
    assert refused.returncode == 1
    assert "owns the schema" in refused.stderr
