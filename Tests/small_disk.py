"""A disk that is small enough to be filled: a file system in memory, seen only by the processes that live inside of it.

It is mounted in namespaces of its own, and gone with everything that runs there when the test ends, however it ends.
Needs Linux, and root or the right to make user namespaces.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import waiting
from servers import database_user, state_folder

_CHUNK = 64 << 10


@dataclass
class SmallDisk:
    """`inside` is the command that runs another one where the disk is seen, below `place`."""

    place: Path
    inside: tuple[str, ...]
    _seen: Path

    def fill(self, leaving: int = 0) -> None:
        """Takes all the space that is left, but for so many bytes."""
        with (self._seen / "ballast").open("ab", buffering=0) as ballast:
            try:
                while True:
                    ballast.write(bytes(_CHUNK))
            except OSError as full:
                if full.errno != errno.ENOSPC:
                    raise
            ballast.truncate(ballast.seek(0, os.SEEK_END) - leaving)

    def free(self) -> None:
        """Gives it back."""
        (self._seen / "ballast").unlink(missing_ok=True)


def _namespaces() -> tuple[list[str], list[str]]:
    """How to make them, and how to enter them."""
    if os.geteuid() == 0:
        return ["--mount", "--pid", "--fork"], ["--mount", "--pid"]
    return (
        ["--user", "--map-current-user", "--keep-caps", "--mount", "--pid", "--fork"],
        ["--user", "--preserve-credentials", "--mount", "--pid"],
    )


@contextlib.contextmanager
def small_disk(name: str, megabytes: int) -> Iterator[SmallDisk]:
    """A disk of this size, for as long as the block runs."""
    # Beside the throw-away servers, where a killed run's remains are found and removed.
    place = state_folder() / f"run.{os.getpid()}.disk.{name}"
    place.mkdir()
    make, enter = _namespaces()
    owner = pwd.getpwnam(database_user()).pw_uid
    script = f'mount -t tmpfs -o size={megabytes}m,uid={owner},mode=755 tmpfs "$0" && echo mounted && exec cat'
    # The first process inside lives as long as the pipe to it is open; with it dies every other one.
    holder = subprocess.Popen(
        ["unshare", *make, "sh", "-c", script, place], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout
        assert holder.stdout.readline() == "mounted\n", "no disk could be mounted: this test needs unshare and mount"
        children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children")
        first = waiting.until(lambda: children.read_text().split(), "the first process of the namespace")[0]
        inside = ("nsenter", "--target", first, *enter, "--")
        yield SmallDisk(place, inside, Path(f"/proc/{first}/root") / place.relative_to("/"))
    finally:
        holder.communicate()
        place.rmdir()
