"""Rounds in turns, medians, targets: how figures are taken and judged."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from Benchmarks import progress

Figures = Mapping[str, float]


def in_turns(rounds: int, contenders: Mapping[str, Callable[[], Figures]]) -> dict[str, dict[str, list[float]]]:
    """Lets everybody run once a round, in another order each time, so that what else the machine does hits all alike.

    Returns the figures of each contender by their names, one a round.
    """
    names = list(contenders)
    taken: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for number in range(rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            with progress.doing(f"round {number + 1} of {rounds}, {name}"):
                figures = contenders[name]()
            for figure, value in figures.items():
                taken[name].setdefault(figure, []).append(value)
    return taken


@dataclass(frozen=True)
class Target:
    """A bound of the issue: of the figure itself, of its ratio to a peer's, or of what it adds to a peer's."""

    bound: float
    above: bool
    peer: str | None = None
    added: bool = False

    def met(self, ours: float, peers: Mapping[str, float]) -> bool | None:
        """None: the peer was not measured, so nobody knows."""
        value = ours
        if self.peer is not None:
            if self.peer not in peers:
                return None
            value = ours - peers[self.peer] if self.added else ours / peers[self.peer]
        return value >= self.bound if self.above else value <= self.bound

    def text(self, unit: str) -> str:
        sign = "≥" if self.above else "≤"
        if self.peer is None:
            return f"{sign} {number(self.bound)} {unit}".rstrip()
        if self.added:
            return f"{sign} {number(self.bound)} {unit} beyond {self.peer}"
        return f"{sign} {number(self.bound)} × {self.peer}"


def at_least(bound: float, times: str | None = None) -> Target:
    """Of the figure, or of its ratio to the peer `times`."""
    return Target(bound, True, times)


def at_most(bound: float, beyond: str | None = None) -> Target:
    """Of the figure, or of its difference from the peer `beyond`."""
    return Target(bound, False, beyond, beyond is not None)


@dataclass
class Result:
    """One line of the table: ours, and the peers of the same rounds."""

    benchmark: str
    what: str
    unit: str
    ours: list[float]
    peers: dict[str, list[float]] = field(default_factory=dict)
    targets: list[Target] = field(default_factory=list)
    more_is_better: bool = True
    remark: str = ""

    def as_json(self, conditions: Mapping[str, Any]) -> dict[str, Any]:
        """Medians, and ratios that are above 1 where Martlet is the better one."""
        ours = statistics.median(self.ours)
        peers = {name: statistics.median(values) for name, values in self.peers.items() if values}
        verdicts = [{"target": target.text(self.unit), "met": target.met(ours, peers)} for target in self.targets]
        known = [verdict["met"] for verdict in verdicts if verdict["met"] is not None]
        return {
            "benchmark": self.benchmark,
            "what": self.what,
            "unit": self.unit,
            "ours": significant(ours),
            "peers": {name: significant(value) for name, value in peers.items()},
            "ratio": {name: self._ratio(ours, value) for name, value in peers.items()},
            "target": [verdict["target"] for verdict in verdicts],
            "met": all(known) if known else None,
            "verdicts": verdicts,
            "rounds": {"ours": [significant(v) for v in self.ours]}
            | {name: [significant(v) for v in values] for name, values in self.peers.items()},
            "remark": self.remark,
            "conditions": dict(conditions),
        }

    def _ratio(self, ours: float, peer: float) -> float | None:
        """None: something to nothing."""
        above, below = (ours, peer) if self.more_is_better else (peer, ours)
        if above == below:
            return 1.0
        return significant(above / below) if below else None


def significant(value: float) -> float:
    """Four digits: more would be noise."""
    return float(f"{value:.4g}")


def number(value: float) -> str:
    """As people write it: 12,345, 1.25."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) < 100 else f"{value:.0f}"


def medians(taken: Mapping[str, Mapping[str, Sequence[float]]], figure: str, *names: str) -> dict[str, list[float]]:
    """The rounds of one figure, of those of the contenders that were measured."""
    return {name: list(taken[name][figure]) for name in names if figure in taken.get(name, {})}
