"""The pictures of a request: a form with files (multipart), or the bytes of one. Limits hold while it is read."""

import asyncio
import unicodedata
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import PurePosixPath

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from imet_ray.serving.limits import MB, Limits, Refused

UNNAMED = "picture"
NAME_BYTES = 255  # of a file's name, on Linux
CONTROLS = ("Cc", "Cs", "Zl", "Zp")  # Unicode's categories; joiners and hard spaces are letters of a name
CUT_OFF = "the request was cut off"


@dataclass(frozen=True)
class Upload:
    """A file as it was sent."""

    name: str  # without folders
    data: bytes


class Reader:
    """Reads requests, as many at once as there is room for their bytes."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.held = 0  # bytes of the requests that are not answered yet

    @asynccontextmanager
    async def pictures(self, request: Request, name: str) -> AsyncIterator[list[Upload]]:
        """The request's pictures; their room is free again afterwards.

        Args:
            name: of a picture that is sent as bytes.

        Raises:
            Refused: if they are too large or too many, or no pictures were sent.
        """
        async with self._body(request) as body:
            if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
                yield await self._form(body)
            else:
                yield [await self._bytes(body, base_name(name))]

    async def text(self, request: Request) -> bytes:
        """The whole body of a request that has no pictures."""
        found = bytearray()
        async with self._body(request) as body:
            async for chunk in body.chunks():
                found += chunk
                self.limits.check_text(len(found))
        return bytes(found)

    @contextmanager
    def room(self, size: int) -> Iterator[None]:
        """Room for these bytes.

        Raises:
            Refused: if too many wait already.
        """
        try:
            self.take(size)
            yield
        finally:
            self.held -= size

    def take(self, size: int) -> None:
        """Hold these bytes, whoever gives them back; arguments and errors as of `room`."""
        self.held += size
        if self.held > self.limits.waiting_bytes:
            raise Refused(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{self.limits.waiting_bytes / MB:g} MB of pictures wait already: send it again in a moment",
            )

    @asynccontextmanager
    async def _body(self, request: Request) -> AsyncIterator["_Body"]:
        packed = request.headers.get("content-encoding", "identity")
        if packed != "identity":
            raise Refused(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"Content-Encoding {packed} is not read: send plain bytes"
            )
        announced = request.headers.get("content-length", "")
        if announced.isdecimal():
            self.limits.check_request(int(announced))
        body = _Body(request, self)
        try:
            yield body
        finally:
            self.held -= body.size

    async def _bytes(self, body: "_Body", name: str) -> Upload:
        parts = []
        async for chunk in body.chunks():
            parts.append(chunk)
            self.limits.check_picture(name, max(1, body.size))
        self.limits.check_picture(name, body.size)
        return Upload(name, b"".join(parts))

    async def _form(self, body: "_Body") -> list[Upload]:
        parser = _Form(body.request.headers, body.chunks(), max_files=self.limits.pictures, max_fields=0)
        try:
            form = await parser.parse()
        except MultiPartException as error:
            if error.message.startswith("Too many files"):
                self.limits.check_count(self.limits.pictures + 1)
            told = "a field is no file" if error.message.startswith("Too many fields") else error.message
            raise Refused(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                f"the form cannot be read ({told}): each field must be a picture",
            ) from None
        found = []
        try:
            for item in (item for _, item in form.multi_items() if isinstance(item, UploadFile)):
                name = base_name(item.filename or "")
                self.limits.check_picture(name, item.size or 0)
                found.append(Upload(name, await item.read()))
        finally:
            await form.close()
        if not found:
            raise Refused(
                HTTPStatus.UNPROCESSABLE_ENTITY, "the form has no picture: send one with -F picture=@a.jpg"
            )
        return found


class _Form(MultiPartParser):
    spool_max_size = 2**62  # nothing goes to the disk: requests are limited


@dataclass
class _Body:
    """A request's body, read once."""

    request: Request
    reader: Reader
    size: int = 0  # bytes so far

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        limits, stream = self.reader.limits, self.request.stream()
        while True:
            try:
                async with asyncio.timeout(limits.silent_seconds):  # a phone may be gone without a word
                    chunk = await anext(stream, None)
            except ClientDisconnect:
                raise Refused(HTTPStatus.BAD_REQUEST, CUT_OFF) from None
            except TimeoutError:
                raise Refused(
                    HTTPStatus.REQUEST_TIMEOUT, f"nothing came for {limits.silent_seconds} s"
                ) from None
            if chunk is None:
                return
            limits.check_request(self.size + len(chunk))
            self.size += len(chunk)
            self.reader.take(len(chunk))
            yield chunk


def base_name(name: str) -> str:
    """A file's name without folders, of any system, and without control characters."""
    name = PurePosixPath(name.replace("\\", "/")).name
    kept = "".join(letter for letter in name if unicodedata.category(letter) not in CONTROLS)
    return kept.encode()[:NAME_BYTES].decode(errors="ignore") or UNNAMED
