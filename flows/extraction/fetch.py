"""Images that a list names on S3, copied to the home: what has not changed is not copied again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwater.errors import DataError
from headwater.files import replacing

if TYPE_CHECKING:
    from flows.runtime.console import Reporter

#: Copies under way at a time.
_THREADS = 8
#: Pages of a listing (a thousand objects each) beyond which objects are asked for one by one.
_PAGES = 20
#: Bytes of a file name that every file system takes.
_NAME_BYTES = 255


@dataclass(frozen=True)
class FromS3:
    """Copies objects by address; can be called as `features.images.layouts.reading.Fetch`.

    A copy has the object's size and time, by which a changed object is known. The environment says
    where S3 is and who asks, as for a store on S3.

    Parameters
    ----------
    folder
        Where copies go: ``BUCKET/KEY`` below it.
    reporter
        Is told how far it is.
    """

    folder: Path
    reporter: Reporter

    def __call__(self, addresses: Sequence[str]) -> Mapping[str, Path | str]:
        """Return the copy of each object, or why there is none.

        Raises
        ------
        DataError
            Without boto3, without credentials, or where S3 does not answer.
        """
        try:
            import boto3  # a third of a second that folders do not need
            from botocore.exceptions import BotoCoreError
        except ImportError:
            raise DataError(
                f"{addresses[0]}: images on S3",
                expected="boto3",
                remedy="pip install 'headwater[s3]', or give the folder of their copies: "
                "--root DIR",
            ) from None
        env = os.environ
        endpoint = env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL") or None
        try:
            client = boto3.client("s3", endpoint_url=endpoint)
            return self._copies(client, addresses)
        except BotoCoreError as error:
            raise DataError(
                f"{addresses[0]}: {error}",
                expected="S3, and credentials for it in the environment or ~/.aws",
                remedy="or copy them (aws s3 sync) and give the folder: --root DIR",
            ) from None

    def _copies(self, client: Any, addresses: Sequence[str]) -> dict[str, Path | str]:
        by_bucket: dict[str, list[str]] = {}
        found: dict[str, Path | str] = {}
        for address in addresses:
            bucket, _, key = address.removeprefix("s3://").partition("/")
            parts = [bucket, *key.split("/")]
            if any(p in ("", ".", "..") or len(os.fsencode(p)) > _NAME_BYTES for p in parts):
                found[address] = "its key cannot be a path on this machine"
            else:
                by_bucket.setdefault(bucket, []).append(key)
        done = 0
        for bucket, keys in by_bucket.items():
            known = _listed(client, bucket, keys)
            with ThreadPoolExecutor(_THREADS) as pool:
                got = pool.map(lambda k, b=bucket, n=known: self._copy(client, b, k, n), keys)
                for key, copy in zip(keys, got, strict=True):
                    found[f"s3://{bucket}/{key}"] = copy
                    done += 1
                    self.reporter.update("fetch", done, len(addresses), "copying what is new")
        return found

    def _copy(
        self, client: Any, bucket: str, key: str, known: Mapping[str, tuple[int, float]]
    ) -> Path | str:
        """Return an object's copy, made anew where size or time differ, or why there is none."""
        from botocore.exceptions import ClientError  # see above

        target = self.folder / bucket / key
        try:
            if key in known:
                size, time = known[key]
            else:
                head = client.head_object(Bucket=bucket, Key=key)
                size, time = head["ContentLength"], head["LastModified"].timestamp()
            if target.is_file() and (target.stat().st_size, target.stat().st_mtime) == (size, time):
                return target
            with replacing(target) as new, new.open("wb") as file:
                shutil.copyfileobj(client.get_object(Bucket=bucket, Key=key)["Body"], file, 1 << 20)
                file.flush()
                os.utime(new, (time, time))
        except ClientError as error:
            return _why(error)
        except OSError as error:
            return f"its copy {target} cannot be written: {error.strerror or error}"
        return target


def _listed(client: Any, bucket: str, keys: Iterable[str]) -> dict[str, tuple[int, float]]:
    """Return size and time of objects, by listing where that is quick."""
    from botocore.exceptions import ClientError  # see above

    prefix = os.path.commonprefix([key.rpartition("/")[0] for key in keys])  # noqa: RUF071  not paths
    found: dict[str, tuple[int, float]] = {}
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    try:
        for number, page in enumerate(pages):
            for one in page.get("Contents", ()):
                found[one["Key"]] = one["Size"], one["LastModified"].timestamp()
            if number >= _PAGES:
                break
    except ClientError:
        # Whoever may read objects may not always list them.
        return {}
    return found


def _why(error: Any) -> str:
    """Return in words why S3 did not give an object."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    known = {"404": "no such object", "NoSuchKey": "no such object", "403": "access is denied"}
    known |= {"AccessDenied": "access is denied", "NoSuchBucket": "no such bucket"}
    return f"{known.get(code, str(error))} on S3"
