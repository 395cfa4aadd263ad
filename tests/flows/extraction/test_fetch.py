"""Images on S3 that a list names: copied once, and again where they changed."""

from __future__ import annotations

import os

import pytest

from flows.extraction.fetch import FromS3
from flows.runtime.console import Reporter
from headwater.errors import DataError


@pytest.fixture
def client(bucket):
    boto3 = pytest.importorskip("boto3")
    return boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])


def test_only_what_is_new_is_copied(client, tmp_path):
    for name in ("a.png", "b.png", "deep/c.png"):
        client.put_object(Bucket="features", Key=f"photos/{name}", Body=name.encode())
    far = [f"s3://features/photos/{name}" for name in ("a.png", "b.png", "deep/c.png", "d.png")]
    odd = ["s3://features/../x.png", f"s3://features/{'x' * 300}.png", "s3://nobody/a.png"]
    fetch = FromS3(tmp_path / "fetched", Reporter(quiet=True))
    got = fetch([*far, *odd])
    assert [got[a].read_bytes() for a in far[:3]] == [b"a.png", b"b.png", b"deep/c.png"]
    assert got[far[0]] == tmp_path / "fetched/features/photos/a.png"
    assert got[far[3]] == "no such object on S3"
    assert [got[a] for a in odd[:2]] == ["its key cannot be a path on this machine"] * 2
    assert got[odd[2]].endswith("on S3")
    before = {a: got[a].stat() for a in far[:3]}
    client.put_object(Bucket="features", Key="photos/b.png", Body=b"another")
    again = fetch(far)
    assert again[far[1]].read_bytes() == b"another"
    inodes = [again[a].stat().st_ino == before[a].st_ino for a in far[:3]]
    assert inodes == [True, False, True]


def test_s3_that_does_not_answer_is_told_with_what_to_do(tmp_path, monkeypatch):
    pytest.importorskip("boto3")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for name, value in (("ACCESS_KEY_ID", "x"), ("SECRET_ACCESS_KEY", "y")):
        monkeypatch.setenv(f"AWS_{name}", value)
    with pytest.raises(DataError, match="--root DIR"):
        FromS3(tmp_path, Reporter(quiet=True))(["s3://shop/a.png"])
