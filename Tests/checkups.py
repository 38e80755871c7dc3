"""What `martlet doctor` found."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

Findings = dict[str, list[dict[str, Any]]]
Doctor = Callable[..., tuple[int, Findings]]


def check_up(martlet_bin: Path, url: str, **env: str) -> tuple[int, Findings]:
    """Runs `martlet doctor --json`; gives the exit code and the findings by check."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
    done = subprocess.run(
        [martlet_bin, "doctor", "--json", "--database-url", url],
        env={**environment, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    report = json.loads(done.stdout)
    assert report["ok"] == (done.returncode == 0)
    findings: Findings = {}
    for finding in report["checks"]:
        findings.setdefault(finding["check"], []).append(finding)
    return done.returncode, findings


def states(findings: Findings) -> dict[str, str]:
    """The first state of each check."""
    return {check: found[0]["state"] for check, found in findings.items()}
