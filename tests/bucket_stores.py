"""Three object stores for tests: moto speaks S3 and, translated, Google's XML API; Azurite speaks Azure's.

None is the store itself. moto heeds the conditions of writes and not those of reads, and knows no generations: here
they are made of its ETags. Tried and left out: fake-gcs-server 1.52 answers 400 to a PUT of Google's XML API.
"""

import asyncio
import base64
import contextlib
import email.utils
import hashlib
import hmac
import http.client
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import boto3
import obstore
from obstore.store import AzureStore as AzureClient

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
ROOT = Path(__file__).resolve().parent.parent
AZURITE = "node_modules/azurite/dist/src/blob/main.js"

Headers = Iterable[tuple[str, str]]


class S3Store:
    """moto."""

    scheme = "s3"
    listing = "list-type=2"  # what only the path of a listing has in it
    page = 1000  # objects of a listing in one answer
    most = 10_000  # trials in the bucket FULL
    slow = "SlowDown"  # what a user sees of its "slow"
    ways_in = "aws configure"
    secret = "tell-nobody"
    missing = ""  # why it cannot be started here
    deletes = "DELETE"  # the method of a deletion

    def __init__(self, port: int) -> None:
        self.port = port

    def command(self, folder: Path, trials: int) -> list[str]:
        """What starts it.

        Args:
            folder: an empty one, for what it keeps.
            trials: so many in the bucket FULL.
        """
        return [sys.executable, "-W", "ignore", "-c", MOTO, str(self.port), str(trials)]

    def fill(self, trials: int) -> None:
        """Once it runs: so many in the bucket FULL, if they are not there from the start."""

    def environment(self, address: str) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": "ours",
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL": address,
        }

    def no_credentials(self, address: str) -> dict[str, str]:
        """An environment in which none are found; variables that are empty are not there."""
        files = dict.fromkeys(("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"), os.devnull)
        nobody = {"AWS_METADATA_ENDPOINT": "http://127.0.0.1:9"}
        return files | nobody | {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}

    def asked(self, path: str, headers: Headers) -> tuple[str, list[tuple[str, str]]]:
        """Path and headers of a request, as the server knows them."""
        return path, list(headers)

    def answered(self, headers: Headers) -> list[tuple[str, str]]:
        """Headers of an answer, as the client knows them."""
        return list(headers)

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
        keys = {"aws_access_key_id": "ours", "aws_secret_access_key": "x", "region_name": "us-east-1"}
        return boto3.client("s3", endpoint_url=f"http://127.0.0.1:{self.port}", **keys)

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

    def delete_bucket(self, bucket: str) -> None:
        self.client.delete_bucket(Bucket=bucket)

    def keys(self, bucket: str) -> list[str]:
        """At most 1,000 of them."""
        return [entry["Key"] for entry in self.client.list_objects_v2(Bucket=bucket)["Contents"]]


class GoogleStore(S3Store):
    """moto, with the headers of Google's XML API: generations in place of ETags."""

    scheme = "gs"
    most = 1100
    slow = "(SlowDown|RateLimitExceeded)"
    ways_in = "gcloud auth application-default login"

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.tags: dict[str, str] = {}  # by generation

    def environment(self, address: str) -> dict[str, str]:
        return {"STORAGE_EMULATOR_HOST": address}

    def no_credentials(self, address: str) -> dict[str, str]:
        nothing = {"STORAGE_EMULATOR_HOST": "", "GOOGLE_APPLICATION_CREDENTIALS": "", "HOME": os.devnull}
        nobody = dict.fromkeys(("GCE_METADATA_HOST", "GCE_METADATA_IP", "GCE_METADATA_ROOT"), "127.0.0.1:9")
        return nothing | nobody | {"GOOGLE_BASE_URL": address}

    def asked(self, path: str, headers: Headers) -> tuple[str, list[tuple[str, str]]]:
        credential = "Credential=ours/20190101/us-east-1/s3/aws4_request"
        found = [("Authorization", f"AWS4-HMAC-SHA256 {credential}, SignedHeaders=host, Signature=none")]
        for name, value in headers:
            if name.lower() == "x-goog-if-generation-match":
                found.append(
                    ("If-None-Match", "*") if value == "0" else ("If-Match", self.tags.get(value, '"x"'))
                )
            elif name.lower() != "authorization":
                found.append((name, value))
        place, mark, query = path.partition("?")
        return quote(unquote(place)) + mark + query, found  # moto takes %2D for itself

    def answered(self, headers: Headers) -> list[tuple[str, str]]:
        found = list(headers)
        for tag in [value for name, value in found if name.lower() == "etag"]:
            generation = str(1 + int(hashlib.sha256(tag.encode()).hexdigest()[:15], 16))
            self.tags[generation] = tag
            found.append(("x-goog-generation", generation))
        return found

    def refusal(self, harm: str, n: int) -> tuple[int, str, bytes]:
        """Google says it in three ways that it is asked too often."""
        status, kind, said = super().refusal(harm, n)
        if harm == "slow":
            status, code = ((429, "SlowDown"), (503, "SlowDown"), (403, "RateLimitExceeded"))[n % 3]
            said = said.replace(b"SlowDown", code.encode())
        return status, kind, said


class AzureStore:
    """Azurite, with its well-known account."""

    scheme = "az"
    listing = "comp=list"
    page = 5000
    most = 300
    slow = "ServerBusy"
    ways_in = "AZURE_STORAGE_ACCOUNT_NAME"
    deletes = "POST"
    account = "devstoreaccount1"
    secret = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

    def __init__(self, port: int) -> None:
        self.port = port

    @property
    def program(self) -> Path:
        return Path(os.environ.get("AZURITE", ROOT / ".azurite")) / AZURITE

    @property
    def missing(self) -> str:
        """See S3Store."""
        if shutil.which("node") and self.program.is_file():
            return ""
        return "no Azurite: npm install --prefix .azurite azurite@3"

    def command(self, folder: Path, trials: int) -> list[str]:
        """See S3Store."""
        where = ["--blobHost", "127.0.0.1", "--blobPort", str(self.port)]
        how = ["--inMemoryPersistence", "--skipApiVersionCheck", "--silent", "--disableTelemetry"]
        return ["node", str(self.program), *where, *how]

    def fill(self, trials: int) -> None:
        """See S3Store."""
        if not trials:
            return
        self.create(FULL)
        client, gate = self.client(FULL), asyncio.Semaphore(32)

        async def one(key: str) -> None:
            async with gate:
                await obstore.put_async(client, key, b"")

        async def all_of_them() -> None:
            await asyncio.gather(*(one(KEY.format(i)) for i in range(trials)))

        asyncio.run(all_of_them())

    def environment(self, address: str) -> dict[str, str]:
        return {
            "AZURE_STORAGE_ACCOUNT_NAME": self.account,
            "AZURE_STORAGE_ACCOUNT_KEY": self.secret,
            "AZURE_STORAGE_ENDPOINT": f"{address}/{self.account}",
        }

    def no_credentials(self, address: str) -> dict[str, str]:
        """See S3Store."""
        return {"AZURE_STORAGE_ACCOUNT_NAME": "", "AZURE_STORAGE_ACCOUNT_KEY": ""}

    def asked(self, path: str, headers: Headers) -> tuple[str, list[tuple[str, str]]]:
        """See S3Store."""
        return path, list(headers)

    def answered(self, headers: Headers) -> list[tuple[str, str]]:
        """See S3Store."""
        return list(headers)

    def refusal(self, harm: str, n: int) -> tuple[int, str, bytes]:
        """See S3Store."""
        status, code = {
            "slow": (503, "ServerBusy"),
            "401": (401, "NoAuthenticationInformation"),
            "403": (403, "AuthorizationFailure"),
        }[harm]
        said = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>Please</Message></Error>"
        return status, "application/xml", said.encode()

    def client(self, bucket: str) -> AzureClient:
        """See S3Store."""
        return AzureClient(
            bucket,
            account_name=self.account,
            account_key=self.secret,
            endpoint=f"http://127.0.0.1:{self.port}/{self.account}",
            client_options={"allow_http": True},
        )

    def create(self, bucket: str) -> None:
        date = email.utils.formatdate(usegmt=True)
        headers = {"x-ms-date": date, "x-ms-version": "2021-08-06"}
        lines = [f"{key}:{value}" for key, value in headers.items()]
        lines += [f"/{self.account}/{self.account}/{bucket}", "restype:container"]
        signed = "\n".join(["PUT", *[""] * 11, *lines]).encode()
        digest = hmac.new(base64.b64decode(self.secret), signed, hashlib.sha256).digest()
        headers["Authorization"] = f"SharedKey {self.account}:{base64.b64encode(digest).decode()}"
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port)) as connection:
            connection.request("PUT", f"/{self.account}/{bucket}?restype=container", headers=headers)
            assert connection.getresponse().status == 201

    def put(self, bucket: str, objects: dict[str, bytes]) -> None:
        client = self.client(bucket)
        for key, data in objects.items():
            client.put(key, data)

    def read(self, bucket: str, key: str) -> bytes:
        return bytes(self.client(bucket).get(key).bytes())

    def delete(self, bucket: str, key: str) -> None:
        self.client(bucket).delete(key)

    def keys(self, bucket: str) -> list[str]:
        return [entry["path"] for entry in self.client(bucket).list().collect()]


STORES = {store.scheme: store for store in (S3Store, GoogleStore, AzureStore)}
