"""Files in requests and answers, with real workers, a real store and the simulator."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import simulated
import waiting
from databases import refused
from processes import Worker
from stores import Files, Store

LARGE = 3 << 20


def message(*parts: dict[str, Any]) -> str:
    return json.dumps([{"role": "user", "content": list(parts)}])


def artifact(identifier: object) -> dict[str, Any]:
    return {"type": "artifact", "artifact": str(identifier)}


def only(rows: list[Any]) -> Any:
    assert len(rows) == 1, rows
    return rows[0]


def fnv(content: bytes) -> str:
    value = 0xCBF29CE484222325
    for byte in content:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return f"{value:016x}"


def test_an_image_comes_back_as_a_file_in_the_database(files: Files, worker: Callable[..., Worker]) -> None:
    worker(files.database)
    row = files.ended(files.ask("image", files.model("image", "big=5000"), prompt="A bird."))
    assert row["status"] == "succeeded", row["error"]
    made = only(row["artifacts"])
    seen = only(
        files.person.execute(
            "select * from (select id, media_type, bytes, sha256, generation_id, position from ai.artifacts) a"
        ).fetchall()
    )
    content = files.content(made)
    assert content is not None
    assert content.startswith(b"\x89PNG")
    assert (seen["id"], seen["media_type"], seen["bytes"], seen["position"]) == (made, "image/png", 5000, 0)
    assert seen["generation_id"] == row["id"]
    assert seen["sha256"] == hashlib.sha256(content).digest()
    call = only(simulated.calls(files.database, row["id"]))
    assert (call["output_tokens"], call["estimated"], call["cost"] > 0) == (272, False, True)
    simulated.books_are_consistent(files.database)


def test_speech_is_heard_again_by_a_transcription(files: Files, worker: Callable[..., Worker]) -> None:
    worker(files.database)
    spoken = files.ended(
        files.ask(
            "speech",
            files.model("speech", "big=70000"),
            prompt="Hello",
            params='{"voice": "alloy", "response_format": "wav"}',
        )
    )
    assert spoken["status"] == "succeeded", spoken["error"]
    sound = only(spoken["artifacts"])
    content = files.content(sound)
    assert content is not None
    assert len(content) == 70_000
    heard = files.ended(
        files.ask(
            "transcription",
            files.model("transcription"),
            messages=message(artifact(sound)),
            params='{"language": "en"}',
        )
    )
    assert heard["output"] == f"I heard 70000 bytes of audio.wav: {fnv(content)}."
    assert heard["artifacts"] is None
    for form in ("text", "verbose_json"):
        again = files.ended(
            files.ask(
                "transcription",
                files.model("transcription"),
                messages=message(artifact(sound)),
                params=json.dumps({"response_format": form}),
            )
        )
        assert again["output"].strip() == heard["output"]


def test_an_image_is_made_from_another(files: Files, worker: Callable[..., Worker]) -> None:
    worker(files.database)
    seed = files.add(b"\x89PNG" + bytes(100), "image/png")
    row = files.ended(
        files.ask("image", files.model("image"), messages=message({"type": "text", "text": "Bluer."}, artifact(seed)))
    )
    assert row["status"] == "succeeded", row["error"]
    request = only(files.simulator.requests())
    assert request["endpoint"] == "/v1/images/edits"


def test_files_go_into_the_messages_of_a_chat(files: Files, worker: Callable[..., Worker]) -> None:
    worker(files.database)
    image = files.add(b"\x89PNG" + bytes(range(256)) * 20, "image/png")
    paper = files.add(b"%PDF-1.7 " + bytes(5_000), "application/pdf", "paper.pdf")
    text = files.add("Grüße".encode(), "text/plain")
    row = files.ended(
        files.ask(
            "chat",
            files.model("chat"),
            messages=message({"type": "text", "text": "What?"}, artifact(image), artifact(paper), artifact(text)),
        )
    )
    assert row["status"] == "succeeded", row["error"]
    # What is not sent as it lies in the row is as large as the files in base 64.
    assert only(files.simulator.requests())["body_bytes"] > (5_124 + 5_009) * 4 // 3


def test_a_large_file_goes_to_the_store_and_comes_back_checked(
    files: Files, store: Store, carrier: Callable[..., Worker]
) -> None:
    files.use(store)
    carrier()
    row = files.ended(files.ask("image", files.model("image", f"big={LARGE}"), prompt="Large."))
    assert row["status"] == "succeeded", row["error"]
    made = only(row["artifacts"])
    key = only(store.listing())
    assert key.startswith(f"{files.member.tenant_id}/{made}-")
    kept = only(files.database.execute("select * from ai.artifacts"))
    assert hashlib.sha256(store.content(key)).digest() == kept["sha256"]
    assert files.database.value("select count(*) from ai.artifact_parts") == 0
    assert files.database.value("select state from ai.artifact_objects") == "stored"
    # In a request of its own kind, from the store.
    again = files.ended(
        files.ask("image", files.model("image"), messages=message({"type": "text", "text": "Bluer."}, artifact(made)))
    )
    assert again["status"] == "succeeded", again["error"]
    # To an app it comes by way of the database.
    assert files.content(made) is None
    files.person.execute("select ai.recall_artifact(%s)", (made,))
    content = waiting.until(lambda: files.content(made), "the file to come back")
    assert hashlib.sha256(content).digest() == kept["sha256"]
    # A file that somebody changed is not used, nor given out.
    files.database.execute("update ai.artifacts set recalled_until = ai.now()")
    waiting.until(lambda: files.database.value("select count(*) from ai.artifact_parts") == 0, "the copy to go")
    store.put(key, b"x" * LARGE)
    broken = files.ended(
        files.ask("image", files.model("image"), messages=message({"type": "text", "text": "Bluer."}, artifact(made)))
    )
    assert (broken["status"], broken["error"]["code"]) == ("failed", "artifact_damaged")
    files.person.execute("select ai.recall_artifact(%s)", (made,))
    waiting.until(
        lambda: files.database.value("select damaged_at is not null from ai.artifacts where object_id is not null"),
        "the worker to look",
    )
    with refused("PT410"):
        files.content(made)


def test_what_an_app_adds_is_moved_into_the_store(files: Files, store: Store, carrier: Callable[..., Worker]) -> None:
    files.use(store)
    content = bytes(range(256)) * (LARGE // 256)
    large, small = files.add(content, "audio/wav"), files.add(b"RIFF", "audio/wav")
    carrier()
    waiting.until(
        lambda: files.database.value("select count(*) from ai.artifact_parts") == 1, "the large file to be moved"
    )
    key = only(store.listing())
    assert store.content(key) == content
    assert str(large) in key
    heard = files.ended(files.ask("transcription", files.model("transcription"), messages=message(artifact(large))))
    assert heard["output"] == f"I heard {LARGE} bytes of audio.wav: {fnv(content)}."
    for one in (large, small):
        assert files.person.execute("select ai.delete_artifact(%s) as d", (one,)).fetchone()["d"]
    waiting.until(lambda: store.listing() == [], "the object to be removed")
    waiting.until(lambda: files.database.value("select count(*) from ai.artifact_objects") == 0, "its row to go")


def test_a_worker_killed_between_upload_and_settle_leaves_no_orphan(
    files: Files, store: Store, carrier: Callable[..., Worker]
) -> None:
    files.use(store)
    first = carrier()
    # Nobody can settle while the lease is locked; to place files it is only read.
    with files.database.connect(autocommit=False) as blocker:
        model = files.model("image", f"big={LARGE};latency=4000")
        generation = files.ask("image", model, prompt="Doomed.")
        waiting.until(lambda: blocker.execute("select 1 from ai.leases for update").fetchall(), "a lease")
        orphan = only(waiting.until(store.listing, "the upload"))
        first.kill()
        # The server would go on with the settle of a client that is gone.
        files.database.execute(
            "select pg_terminate_backend(pid, 10000) from pg_stat_activity "
            "where datname = current_database() and application_name = 'martlet settle'"
        )
        blocker.rollback()
    carrier()
    row = files.ended(generation)
    assert row["status"] == "succeeded", row["error"]
    made = only(row["artifacts"])
    assert only(files.person.execute("select id from ai.artifacts").fetchall())["id"] == made
    waiting.until(lambda: files.database.value("select count(*) from ai.artifacts") == 1, "the staged file to go")
    # It may still be uploading, for all anybody knows: it stays until that is over.
    assert orphan in store.listing()
    assert len(store.listing()) >= 2
    files.database.execute("update ai.artifact_objects set due_at = ai.now() where state = 'uploading'")
    waiting.until(lambda: len(store.listing()) == 1, "the orphan to be removed")
    assert only(store.listing()).startswith(f"{files.member.tenant_id}/{made}-")
    waiting.until(lambda: files.database.value("select count(*) from ai.artifact_objects") == 1, "its row to go")
    calls = simulated.calls(files.database, generation)
    assert calls[0]["status"] == "abandoned"
    assert [call["status"] for call in calls].count("succeeded") == 1
    simulated.books_are_consistent(files.database)


def test_a_store_that_is_away_does_not_lose_a_paid_answer(
    files: Files, store: Store, carrier: Callable[..., Worker]
) -> None:
    files.use(store, endpoint="http://127.0.0.1:9")
    carrier()
    row = files.ended(files.ask("image", files.model("image", f"big={LARGE}"), prompt="Kept."))
    assert (row["status"], row["attempts"]) == ("succeeded", 1), row["error"]
    content = files.content(only(row["artifacts"]))
    assert content is not None
    assert len(content) == LARGE
    # Once the store is there again it goes where it belongs; what was never uploaded is removed without harm.
    files.database.execute("update ai.artifact_stores set endpoint = %s", store.endpoint)
    files.database.execute("update ai.artifacts set move_at = ai.now()")
    waiting.until(store.listing, "the file to be moved")
    waiting.until(lambda: files.database.value("select count(*) from ai.artifact_parts") == 0, "its parts to go")
    files.database.execute("update ai.artifact_objects set due_at = ai.now() where state <> 'stored'")
    waiting.until(
        lambda: files.database.value("select count(*) from ai.artifact_objects") == 1, "the other object's row to go"
    )
    assert store.content(only(store.listing())) == content


def test_a_file_waits_for_a_database_that_is_busy(files: Files, worker: Callable[..., Worker]) -> None:
    # As a lock would that is not let go within lock_timeout.
    files.database.execute(
        "create function public.busy() returns trigger language plpgsql as"
        " $$ begin raise exception 'canceling statement due to lock timeout' using errcode = '55P03'; end $$"
    )
    files.database.execute(
        "create trigger busy before insert on ai.artifact_parts for each row execute function public.busy()"
    )
    process = worker(files.database)
    asked = files.ask("image", files.model("image", "big=5000"), prompt="Kept.")
    waiting.until(lambda: process.text.count("keeping a file failed") > 3, "the database to refuse the file")
    files.database.execute("drop trigger busy on ai.artifact_parts")
    row = files.ended(asked)
    assert (row["status"], row["attempts"]) == ("succeeded", 1), row["error"]
    assert len(files.content(only(row["artifacts"])) or b"") == 5000
    simulated.books_are_consistent(files.database)


def test_a_wrong_key_for_the_store_is_told_and_nothing_is_lost(
    files: Files, store: Store, worker: Callable[..., Worker]
) -> None:
    files.use(store)
    process = worker(files.database, env={"FILES_S3_KEY": store.key + "x"})
    row = files.ended(files.ask("image", files.model("image", f"big={LARGE}"), prompt="Kept."))
    assert row["status"] == "succeeded", row["error"]
    assert store.listing() == []
    assert len(files.content(only(row["artifacts"])) or b"") == LARGE
    process.says("a file could not be uploaded")
    assert store.key.split(":")[1] not in process.text


def test_forgetting_a_user_removes_the_objects_too(files: Files, store: Store, carrier: Callable[..., Worker]) -> None:
    files.use(store)
    carrier()
    files.ended(files.ask("image", files.model("image", f"big={LARGE}"), prompt="Mine."))
    files.add(bytes(LARGE), "image/png")
    waiting.until(lambda: len(store.listing()) == 2, "both in the store")
    other = files.database.member(files.member.tenant_id)
    files.database.connect(user=other).execute("select ai.add_artifact(%s, 'image/png')", (bytes(LARGE),))
    waiting.until(lambda: len(store.listing()) == 3, "the other's too")
    waiting.until(
        lambda: files.database.value("select count(*) from ai.artifact_objects where state = 'uploading'") == 0,
        "all to be there",
    )
    files.database.execute("select ai.forget_user(%s, %s)", files.member.user_id, files.member.tenant_id)
    waiting.until(
        lambda: files.database.value("select finished_at is not null from ai.forgotten"), "all to be erased", 60
    )
    assert len(store.listing()) == 1
    assert files.database.value("select count(*) from ai.artifacts where user_id = %s", files.member.user_id) == 0
    assert files.database.value("select count(*) from ai.artifact_objects") == 1


def test_many_large_files_at_once_keep_to_the_memory_for_them(
    files: Files, store: Store, carrier: Callable[..., Worker]
) -> None:
    files.use(store)
    process = carrier(env={"MARTLET_FILE_MEMORY": "64"}, concurrency=32)
    content = bytes(8 << 20)
    source = files.add(content, "audio/wav")
    model = files.model("transcription")
    ids = [files.ask("transcription", model, messages=message(artifact(source))) for _ in range(24)]
    simulated.all_ended(files.database)
    assert {files.ended(one)["status"] for one in ids} == {"succeeded"}
    with open(f"/proc/{process.pid}/status") as status:
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    # 24 requests of 8 MiB, six copies each, would be 1.1 GiB.
    assert peak < 400 << 10, f"{peak} KiB"


class Shelf(ThreadingHTTPServer):
    """Serves files by path, and redirects."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        shelf = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                shelf.asked.append(self.path)
                if self.path.startswith("/to/"):
                    self.send_response(302)
                    self.send_header("location", self.path.removeprefix("/to/"))
                    self.send_header("content-length", "0")
                    self.end_headers()
                    return
                size = int(self.path.strip("/") or 0)
                self.send_response(200)
                self.send_header("content-type", "audio/wav")
                self.send_header("content-length", str(size))
                self.end_headers()
                self.wfile.write(bytes(size))

            def log_message(self, *_: object) -> None: ...

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def shelf():
    with Shelf() as server:
        yield server
        server.shutdown()


def audio(url: str) -> str:
    return message({"type": "input_audio", "input_audio": {"data": url, "format": "wav"}})


def test_an_address_in_a_message_is_fetched_from_the_public_internet_only(
    files: Files, shelf: Shelf, worker: Callable[..., Worker]
) -> None:
    worker(files.database)
    model = files.model("transcription")
    for url in (
        f"{shelf.url}/100",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::ffff:127.0.0.1]/x",
        "http://localhost:1/",
    ):
        row = files.ended(files.ask("transcription", model, messages=audio(url)))
        assert (row["status"], row["error"]["code"]) == ("failed", "private_address"), url
    assert shelf.asked == []
    assert files.simulator.requests() == []


def test_an_allowed_address_is_fetched_within_the_limit_and_each_redirect_is_checked(
    files: Files, shelf: Shelf, worker: Callable[..., Worker]
) -> None:
    worker(files.database, env={"MARTLET_ALLOWED_NETWORKS": "127.0.0.1"})
    files.database.execute("update ai.artifact_policies set max_bytes = 1000")
    model = files.model("transcription")

    def ask(url: str) -> dict[str, Any]:
        return files.ended(files.ask("transcription", model, messages=audio(url)))

    assert ask(f"{shelf.url}/1000")["output"].startswith("I heard 1000 bytes of audio.wav")
    assert ask(f"{shelf.url}/to/{shelf.url}/77")["output"].startswith("I heard 77 bytes")
    assert ask(f"{shelf.url}/to//88")["output"].startswith("I heard 88 bytes")
    assert ask(f"{shelf.url}/1001")["status"] == "failed"
    assert ask(f"{shelf.url}/to/http://10.0.0.1/")["error"]["code"] == "private_address"
    assert ask(f"{shelf.url}/to/file:///etc/passwd")["status"] == "failed"
    assert ask(shelf.url + "/to/" * 5 + shelf.url)["status"] == "failed"


def test_files_that_a_provider_keeps_are_fetched_from_its_own_address(
    files: Files, worker: Callable[..., Worker]
) -> None:
    worker(files.database)
    row = files.ended(
        files.ask("image", files.model("image", "big=4000"), prompt="There.", params='{"response_format": "url"}')
    )
    assert row["status"] == "succeeded", row["error"]
    assert len(files.content(only(row["artifacts"])) or b"") == 4000


def test_a_file_larger_than_allowed_is_not_kept_but_booked(files: Files, worker: Callable[..., Worker]) -> None:
    worker(files.database)
    files.database.execute("update ai.artifact_policies set max_bytes = 4096")
    model = files.model("image", "big=4097")
    row = files.ended(files.ask("image", model, prompt="Too large."))
    assert (row["status"], row["error"]["code"], row["attempts"]) == ("failed", "artifact_too_large", 1)
    assert only(simulated.calls(files.database, row["id"]))["cost"] > 0
    assert files.database.value("select count(*) from ai.artifacts") == 0
    simulated.books_are_consistent(files.database)


@pytest.mark.parametrize(
    "fault", ["status=500;times=1", "malformed;times=1", "truncate_after=3;times=1", "reset;times=1", "empty;times=1"]
)
@pytest.mark.parametrize("kind", ["image", "speech"])
def test_faults_of_a_provider_of_files_are_retried_and_booked_once(
    files: Files, worker: Callable[..., Worker], kind: str, fault: str
) -> None:
    worker(files.database)
    ids = [
        files.ask(kind, files.model(kind, fault), prompt=f"Number {n}.", params='{"voice": "alloy"}') for n in range(2)
    ]
    for one in ids:
        row = files.ended(one)
        expected = ("failed", 1) if fault.startswith("malformed") else ("succeeded", 2)
        assert (row["status"], row["attempts"]) == expected, row["error"]
        assert files.database.value("select count(*) from ai.artifacts where generation_id = %s", one) == (
            row["status"] == "succeeded"
        )
    simulated.books_are_consistent(files.database)
