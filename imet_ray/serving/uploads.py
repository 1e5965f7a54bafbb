"""The pictures of a request: a form with files (multipart), or the bytes of one. Limits hold while it is read."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import PurePosixPath

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from imet_ray.serving.limits import MB, Limits, Refused

UNNAMED = "picture"


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
        async with self._body(request) as body:
            return b"".join([chunk async for chunk in body.chunks()])

    @asynccontextmanager
    async def _body(self, request: Request) -> AsyncIterator["_Body"]:
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
        limits = self.reader.limits
        try:
            async for chunk in self.request.stream():
                self.size += len(chunk)
                self.reader.held += len(chunk)
                limits.check_request(self.size)
                if self.reader.held > limits.waiting_bytes:
                    raise Refused(
                        HTTPStatus.SERVICE_UNAVAILABLE,
                        f"{limits.waiting_bytes / MB:g} MB of pictures wait already: send it again in a moment",
                    )
                yield chunk
        except ClientDisconnect:
            raise Refused(HTTPStatus.BAD_REQUEST, "the request was cut off") from None


def base_name(name: str) -> str:
    """A file's name without folders, of any system, and without control characters."""
    name = PurePosixPath(name.replace("\\", "/")).name
    return "".join(letter for letter in name if letter.isprintable())[:200] or UNNAMED
