"""LiteLLM's price map, and what calls cost by it, worked out without Martlet, in decimals, from the map's members.

The map comes from the wheel of the pinned version on PyPI and is kept in the state folder.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

VERSION = "1.109.1"
MEMBER = "litellm/model_prices_and_context_window_backup.json"
SERVICES = {
    "batches": "batch",
    "flex": "flex",
    "priority": "priority",
    "ultrafast": "ultrafast",
    "balanced": "balanced",
}
MEDIA = ("audio", "image", "video")


def fetched(state: Path, scratch: Path) -> str:
    """The text of the map; fetched once for each clone."""
    kept = state / f"litellm-{VERSION}-prices.json"
    if not kept.exists():
        quietly = ["--quiet", "--disable-pip-version-check", "--no-input", "--no-deps", "--only-binary", ":all:"]
        subprocess.run(
            [sys.executable, "-m", "pip", "download", *quietly, "--dest", str(scratch), f"litellm=={VERSION}"],
            check=True,
            timeout=200,
        )
        (wheel,) = scratch.glob("litellm-*.whl")
        part = kept.with_suffix(f".{os.getpid()}")
        part.write_bytes(zipfile.ZipFile(wheel).read(MEMBER))
        part.replace(kept)
    return kept.read_text(encoding="utf-8")


@dataclass
class Use:
    """What one call used. Totals include their parts."""

    input: int = 0
    cache_read: int = 0
    cache_write: int = 0
    cache_write_1h: int = 0
    output: int = 0
    reasoning: int = 0
    units: dict[str, Decimal] = field(default_factory=dict)
    service_tier: str | None = None


class Entry:
    """One model of the map, asked for single rates by the names that the map uses."""

    def __init__(self, members: dict[str, Any]) -> None:
        self.members = dict(members)
        # Anthropic's batches cost half of everything, also of what the map does not name.
        if members.get("litellm_provider") == "anthropic" and any(key.endswith("_batches") for key in members):
            for key, value in members.items():
                if re.fullmatch(r"cache_creation_input_token_cost_above_1hr(_above_\d+k_tokens)?", key):
                    self.members.setdefault(f"{key}_batches", value / 2)
        self.mode = members.get("mode")
        self.image = self.mode in ("image_generation", "image_edit")
        self.tiers = []
        for tier in members.get("tiered_pricing") or []:
            bounds = tier.get("range")
            if bounds and isinstance(bounds[0], Decimal | int):
                self.tiers.append((int(bounds[0]), {k: v for k, v in tier.items() if k != "range"}))

    def plain(self, name: str) -> Decimal:
        value = self.members.get(name)
        return Decimal(value) if isinstance(value, Decimal | int) else Decimal(0)

    def rate(self, names: tuple[str, ...], use: Use, for_one: bool = False) -> Decimal | None:
        """The rate under one of these names for a call of this size and service tier: of the highest threshold that
        the input is above, of its service tier before the plain one."""
        thresholds: dict[int, list[tuple[str, Decimal]]] = {}
        for name in names:
            # What the entry says outright goes before what its list of tiers says.
            said = [(name, key, value) for key, value in self.members.items()]
            said += [
                (name, f"{key}_above_{above}_tokens" if above else key, value)
                for above, tier in self.tiers
                for key, value in tier.items()
            ]
            for base, key, value in said:
                found = re.fullmatch(
                    re.escape(base) + r"(?:_above_(\d+)(k?)_tokens)?(?:_(batches|flex|priority|ultrafast|balanced))?",
                    key,
                )
                if not found or not isinstance(value, Decimal | int):
                    continue
                above = int(found[1] or 0) * (1000 if found[2] else 1)
                service = SERVICES.get(found[3] or "", "")
                thresholds.setdefault(above, []).append((service, Decimal(value)))
        wanted = (use.service_tier or "").lower()
        factor = Decimal(1)
        if wanted == "fast":
            special = self.members.get("provider_specific_entry") or {}
            if isinstance(special.get("fast"), Decimal | int) and not for_one:
                factor = Decimal(special["fast"])
            wanted = ""
        for tiered in (True, False):
            for service in dict.fromkeys((wanted, "")):
                for above in sorted(
                    (a for a in thresholds if (a > 0) == tiered and (a == 0 or a < use.input)), reverse=True
                ):
                    for candidate, value in thresholds[above]:
                        if candidate == service:
                            return value * factor
        return None

    def token(self, chain: tuple[tuple[str, ...], ...], use: Use) -> Decimal:
        """The first rate of a chain of classes, of which each is known by one or more names."""
        for names in chain:
            found = self.rate(names, use)
            if found is not None:
                return found
        return Decimal(0)

    def unit(self, name: str, use: Use) -> Decimal:
        return self.rate((name,), use, for_one=True) or Decimal(0)


INPUT = ("input_cost_per_token",)
OUTPUT = ("output_cost_per_token",)
READ = ("cache_read_input_token_cost",)
WRITE = ("cache_creation_input_token_cost",)
WRITE_1H = ("cache_creation_input_token_cost_above_1hr",)
WRITE_12H = ("cache_creation_input_token_cost_above_12hr",)


def tokens_cost(entry: Entry, use: Use) -> Decimal:
    """What the tokens cost."""
    read_names = READ if "cache_read_input_token_cost" in entry.members else (*READ, "input_cost_per_token_cache_hit")
    left = {
        "read": Decimal(use.cache_read),
        "write": Decimal(use.cache_write),
        "fresh": Decimal(use.input - use.cache_read - use.cache_write - use.cache_write_1h),
        "said": Decimal(use.output - use.reasoning),
    }
    total = Decimal(0)

    def take(kind: str, amount: Decimal, rate: Decimal) -> Decimal:
        nonlocal total
        taken = min(amount, left[kind])
        left[kind] -= taken
        total += taken * rate
        return taken

    take("fresh", use.units.get("cache_write_12h", Decimal(0)), entry.token((WRITE_12H, WRITE_1H, WRITE, INPUT), use))
    for medium in MEDIA:
        whole = use.units.get(f"{medium}_input", Decimal(0))
        own = (f"input_cost_per_{medium}_token",)
        chain = ((f"cache_read_input_{medium}_token_cost",), read_names, own, INPUT)
        whole -= take("read", min(use.units.get(f"{medium}_cache_read", Decimal(0)), whole), entry.token(chain, use))
        chain = ((f"cache_creation_input_{medium}_token_cost",), WRITE, own, INPUT)
        whole -= take("write", min(use.units.get(f"{medium}_cache_write", Decimal(0)), whole), entry.token(chain, use))
        take("fresh", whole, entry.token((own, INPUT), use))
        take(
            "said",
            use.units.get(f"{medium}_output", Decimal(0)),
            entry.token(((f"output_cost_per_{medium}_token",), OUTPUT), use),
        )
    total += left["fresh"] * entry.token((INPUT,), use)
    total += left["read"] * entry.token((read_names, INPUT), use)
    total += left["write"] * entry.token((WRITE, INPUT), use)
    total += use.cache_write_1h * entry.token((WRITE_1H, WRITE, INPUT), use)
    total += left["said"] * entry.token((OUTPUT,), use)
    total += use.reasoning * entry.token((("output_cost_per_reasoning_token",), OUTPUT), use)
    return total + use.units.get("citations", Decimal(0)) * entry.token((("citation_cost_per_token",),), use)


def unit_rate(entry: Entry, name: str, use: Use) -> Decimal:
    """The rate of a class for one. Where tokens have a price, other measures of the same are not billed."""
    has_input = entry.plain("input_cost_per_token") > 0
    has_output = entry.plain("output_cost_per_token") > 0
    base, _, variant = name.partition(":")
    if base == "images":
        if has_output or entry.plain("output_cost_per_image_token") > 0:
            return Decimal(0)
        found = entry.unit("output_cost_per_image", use)
        if entry.image and "output_cost_per_image" not in entry.members and not has_input:
            found = entry.unit("input_cost_per_image", use)
        size = (
            next((k for k in entry.members if k.lower() == f"output_cost_per_image_{variant}"), None)
            if variant
            else None
        )
        return entry.unit(size, use) if size and entry.plain(size) > 0 else found
    if base == "seconds":
        if has_input or has_output:
            return Decimal(0)
        heard = Decimal(0) if "cost_per_second" in entry.members else entry.unit("input_cost_per_second", use)
        made = entry.unit("output_cost_per_second", use) or entry.unit("output_cost_per_video_per_second", use)
        size = f"output_cost_per_second_{variant}"
        return entry.unit(size, use) if variant and size in entry.members else made or heard
    if base == "characters":
        return Decimal(0) if has_input else entry.unit("input_cost_per_character", use)
    if base == "pixels":
        made = entry.unit("output_cost_per_pixel", use)
        return made or (entry.unit("input_cost_per_pixel", use) if entry.image else Decimal(0))
    if base == "input_images":
        counted = (has_input and entry.mode != "embedding") or entry.plain("input_cost_per_image_token") > 0
        turned = entry.image and "output_cost_per_image" not in entry.members and not has_input
        return Decimal(0) if counted or turned else entry.unit("input_cost_per_image", use)
    if base == "input_seconds":
        counted = entry.plain(f"input_cost_per_{variant}_token") > 0
        return Decimal(0) if counted else entry.unit(f"input_cost_per_{variant}_per_second", use)
    if base == "searches":
        sizes = entry.members.get("search_context_cost_per_query") or {}
        found = sizes.get(f"search_context_size_{variant or 'medium'}")
        return Decimal(found if found is not None else sizes.get("search_context_size_medium") or 0)
    if base == "file_searches":
        return entry.unit("file_search_cost_per_1k_calls", use) * Decimal("0.001")
    names = {
        "requests": "input_cost_per_request",
        "queries": "input_cost_per_query",
        "map_searches": "google_maps_grounding_cost_per_query",
        "code_sessions": "code_interpreter_cost_per_session",
        "pages": "ocr_cost_per_page",
        "annotated_pages": "annotation_cost_per_page",
        "credits": "ocr_cost_per_credit",
        "messages": "input_cost_per_text_message",
        "output_characters": "output_cost_per_character",
    }
    if base == "output_characters" and has_output:
        return Decimal(0)
    return entry.unit(names[base], use)


def cost(members: dict[str, Any], use: Use) -> Decimal:
    """What the call costs by this entry, exact."""
    entry = Entry(members)
    with localcontext() as context:
        context.prec = 200
        total = tokens_cost(entry, use)
        for name, amount in use.units.items():
            if name.startswith(tuple(f"{medium}_" for medium in MEDIA)) or name in ("cache_write_12h", "citations"):
                continue
            total += amount * unit_rate(entry, name, use)
        return total


def read(text: str) -> dict[str, dict[str, Any]]:
    """The map with numbers as decimals, without its sample."""
    whole = json.loads(text, parse_float=Decimal)
    return {key: value for key, value in whole.items() if key != "sample_spec"}
