"""An S3 server that checks signatures, and a database whose files go to it."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest
from databases import Database
from moto.server import ThreadedMotoServer
from processes import Simulator, Worker
from stores import BUCKET, Files, Store


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def _client(endpoint: str, service: str, key: str) -> Any:
    access, secret = key.split(":")
    return boto3.client(
        service, endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id=access, aws_secret_access_key=secret
    )


@pytest.fixture
def store(s3: str) -> Store:
    """An empty bucket. Three calls, which make its user, are taken from anybody; then each signature is checked."""
    for path, count in (("reset", ""), ("reset-auth", "3")):
        request = urllib.request.Request(f"{s3}/moto-api/{path}", count.encode(), {"content-type": "text/plain"})  # noqa: S310
        urllib.request.urlopen(request).close()  # noqa: S310
    iam = _client(s3, "iam", "nobody:nothing")
    iam.create_user(UserName="worker")
    made = iam.create_access_key(UserName="worker")["AccessKey"]
    document = '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}'
    iam.put_user_policy(UserName="worker", PolicyName="all", PolicyDocument=document)
    key = f"{made['AccessKeyId']}:{made['SecretAccessKey']}"
    client = _client(s3, "s3", key)
    client.create_bucket(Bucket=BUCKET)
    return Store(s3, key, client)


@pytest.fixture
def files(database: Database, simulator: Simulator) -> Files:
    return Files(database, simulator)


@pytest.fixture
def carrier(files: Files, worker: Callable[..., Worker], store: Store) -> Callable[..., Worker]:
    """Starts a worker that has the key of the store."""

    def start(**options: Any) -> Worker:
        env = {"FILES_S3_KEY": store.key, **options.pop("env", {})}
        return worker(files.database, env=env, **options)

    return start
