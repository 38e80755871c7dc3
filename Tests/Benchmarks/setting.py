"""What every benchmark is given."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from Benchmarks import installation
from Benchmarks.installation import Installation

Size = TypeVar("Size", int, float)


@dataclass(frozen=True)
class Setting:
    """Where to measure, how often, and how much."""

    server: str
    folder: Path
    rounds: int = 3
    quick: bool = False
    peers: bool = True

    def size(self, full: Size, quick: Size) -> Size:
        """How much of something: `quick` shows that it works, and measures nothing."""
        return quick if self.quick else full

    def installation(self) -> AbstractContextManager[Installation]:
        return installation.opened(self.server, self.folder)
