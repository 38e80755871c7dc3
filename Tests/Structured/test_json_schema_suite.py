"""ai.json_schema_errors() against the official JSON-Schema-Test-Suite, draft 2020-12.

The suite is in the source distribution of the Python package jsonschema, the metaschemas are in
jsonschema-specifications. Both are fetched when they are first needed and kept beside the tests' environment; nothing
of them is in the repository.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from databases import Database

REPOSITORY = Path(__file__).resolve().parent.parent.parent
SUITE = "jsonschema==4.26.0"
METASCHEMAS = "jsonschema-specifications==2025.9.1"
DRAFT = "https://json-schema.org/draft/2020-12/schema"

# What does not give the suite's answer, and why.
NO_NUL = "a text in PostgreSQL, and so a value of the type jsonb, cannot contain the character NUL"
NO_UNICODE_TABLES = "what \\p{Letter} and \\p{digit} match beyond ASCII is up to the collation of the database"
NO_IDNA = "idn-hostname knows the shape of labels, not the tables and rules of IDNA 2008"
ONE_DRAFT = "every schema is read as draft 2020-12, whatever its $schema says"
ASKED = "formats are asserted where the caller asks for it, not where a metaschema does"
NO_DEPENDENCIES = "the keyword dependencies left the standard with draft 2019-09"
OTHER_DRAFTS = ("remotes/draft3/", "remotes/draft4/", "remotes/draft6/", "remotes/draft-next/")
REQUIRED = {("const.json", "nul characters in strings"): NO_NUL, ("enum.json", "nul characters in strings"): NO_NUL}
OPTIONAL = {
    "ecmascript-regex.json": NO_UNICODE_TABLES,
    "idn-hostname.json": NO_IDNA,
    "cross-draft.json": ONE_DRAFT,
    "format-assertion.json": ASKED,
    "dependencies-compatibility.json": NO_DEPENDENCIES,
}


@dataclass(frozen=True)
class Case:
    """One instance under one schema."""

    file: str
    group: str
    name: str
    schema: Any
    instance: Any
    valid: bool


def fetched(requirement: str, *options: str) -> Path:
    """The archive of a package, fetched once."""
    folder = REPOSITORY / ".martlet" / "downloads" / requirement.replace("==", "-")
    found = sorted(folder.glob("*.tar.gz")) + sorted(folder.glob("*.whl"))
    if not found:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *options, "-d", folder, requirement]
        subprocess.run(command, check=True, timeout=300)
        found = sorted(folder.glob("*.tar.gz")) + sorted(folder.glob("*.whl"))
    return found[0]


@pytest.fixture(scope="module")
def suite() -> dict[str, Any]:
    """The suite's JSON files by their path below json/."""
    files = {}
    with tarfile.open(fetched(SUITE, "--no-binary", ":all:")) as archive:
        for member in archive.getmembers():
            _, _, path = member.name.partition("/json/")
            wanted = path.startswith(("tests/draft2020-12/", "remotes/"))
            if member.isfile() and wanted and path.endswith(".json"):
                content = archive.extractfile(member)
                assert content is not None
                files[path] = json.load(content)
    assert len(files) > 100
    return files


@pytest.fixture(scope="module")
def documents(suite: dict[str, Any]) -> dict[str, Any]:
    """The schemas that the suite refers to: what it would serve, and the metaschemas."""
    found = {
        "http://localhost:1234/" + path.removeprefix("remotes/"): schema
        for path, schema in suite.items()
        if path.startswith("remotes/") and not path.startswith(OTHER_DRAFTS)
    }
    with zipfile.ZipFile(fetched(METASCHEMAS)) as archive:
        for name in archive.namelist():
            if "/draft202012/" in name and not name.endswith("/"):
                schema = json.loads(archive.read(name))
                found[schema["$id"]] = schema
    return found


def cases(suite: dict[str, Any], folder: str) -> Iterator[Case]:
    """All cases right in one folder of the suite."""
    for path, groups in sorted(suite.items()):
        parent, _, file = path.rpartition("/")
        if parent == folder:
            for group in groups:
                for test in group["tests"]:
                    yield Case(
                        file, group["description"], test["description"], group["schema"], test["data"], test["valid"]
                    )


def wrong(database: Database, found: list[Case], documents: dict[str, Any], formats: bool) -> list[Case]:
    """Those to which SQL gives another answer than the suite."""
    failed = []
    for case in found:
        schema = json.dumps(case.schema)
        # A schema's own $schema leads nowhere; only what is referred to has to be there.
        elsewhere = "json-schema.org" in schema.replace(f'"$schema": "{DRAFT}"', "") or "localhost:1234" in schema
        if "\\u0000" in schema or "\\u0000" in json.dumps(case.instance):
            failed.append(case)
            continue
        valid = database.superuser.execute(
            "select not exists (select from ai.json_schema_errors(%s::jsonb, %s::jsonb, %s, %s::jsonb)) as valid",
            (schema, json.dumps(case.instance), formats, json.dumps(documents if elsewhere else {})),
        ).fetchone()
        assert valid is not None
        if valid["valid"] != case.valid:
            failed.append(case)
    return failed


def test_the_required_part_of_the_suite_gives_the_right_answers(
    database: Database, suite: dict[str, Any], documents: dict[str, Any]
) -> None:
    found = list(cases(suite, "tests/draft2020-12"))
    failed = wrong(database, found, documents, formats=False)

    assert len(found) >= 1250
    assert {(case.file, case.group) for case in failed} == set(REQUIRED)
    assert len(failed) <= len(found) / 100


def test_the_optional_part_fails_only_where_a_reason_is_listed(
    database: Database, suite: dict[str, Any], documents: dict[str, Any]
) -> None:
    found = list(cases(suite, "tests/draft2020-12/optional"))
    failed = wrong(database, found, documents, formats=False)

    assert len(found) > 100
    assert {case.file for case in failed} <= set(OPTIONAL)


def test_formats_are_asserted_where_asked(database: Database, suite: dict[str, Any], documents: dict[str, Any]) -> None:
    found = list(cases(suite, "tests/draft2020-12/optional/format"))
    failed = wrong(database, found, documents, formats=True)

    assert len(found) > 400
    assert {case.file for case in failed} <= set(OPTIONAL)
