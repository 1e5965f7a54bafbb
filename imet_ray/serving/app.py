"""The HTTP interface: pictures in, labels as JSON out, and the page that uses it. What predicts is given.

Pictures are decoded here, so that the models get whole batches of what they look at, and nothing else.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

import numpy as np
from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import imet_ray
from imet_ray.errors import ImetError
from imet_ray.prediction.prepared import Prepared, Preparer
from imet_ray.reporting.tagging_page import api_page, content_policy, tagging_page
from imet_ray.serving.access import Access
from imet_ray.serving.answers import Error, Health, Label, Labels, Probability, TaggedPicture, Tags
from imet_ray.serving.decoding import Decoder
from imet_ray.serving.downloads import Chosen, csv_file, sidecars, zipped
from imet_ray.serving.limits import Limits, Refused
from imet_ray.serving.tagged import Tagged
from imet_ray.serving.uploads import CUT_OFF, Reader

T = TypeVar("T")

TOP = 20  # probabilities of an answer, unless more are asked for
CSV = "text/csv; charset=utf-8"
BINARY = {"type": "string", "format": "binary"}
BODY = {
    "required": True,
    "description": (
        "curl -F picture=@a.jpg -F picture=@b.jpg ADDRESS/tag\n"
        "curl --data-binary @a.jpg 'ADDRESS/tag?name=a.jpg&top=3'"
    ),
    "content": {
        "multipart/form-data": {
            "schema": {"type": "object", "properties": {"picture": {"type": "array", "items": BINARY}}}
        },
        "application/octet-stream": {"schema": BINARY},
    },
}
CHOSEN = {"application/json": {"schema": Chosen.model_json_schema()}}


@dataclass(frozen=True)
class Served:
    """An ensemble that is served."""

    name: str
    label_ids: Sequence[str]
    labels: Sequence[str]  # their names
    decided_by: str  # in words
    tagged_by: str  # as `--tag` notes it
    prepare: Preparer
    tag: Callable[[Prepared], Awaitable[Tagged]]  # may be asked many at once; raises ImetError
    ready: Callable[[], Awaitable[bool]]


class TagServer:
    """Answers requests; its state is what it has counted."""

    def __init__(self, served: Served, limits: Limits) -> None:
        self.served = served
        self.limits = limits
        self.reader = Reader(limits)
        self.decoder = Decoder(limits, served.prepare)
        self.pictures, self.batches, self.model_seconds = 0, 0.0, 0.0

    async def tag(
        self,
        request: Request,
        name: Annotated[str, Query(description="of a picture that is sent as bytes")] = "",
        top: Annotated[
            int, Query(ge=0, description="how many probabilities each picture's answer has")
        ] = TOP,
    ) -> Tags:
        """Tag pictures: a form with one or many files, or the bytes of one. All are tagged, or none."""
        async with self.reader.pictures(request, name) as uploads:
            ready = await _unless_gone(request, map(self.decoder.prepared, uploads))
            names = [upload.name for upload in uploads]
        with self.reader.room(sum(prepared.nbytes for prepared in ready)):
            found = await _unless_gone(request, map(self.served.tag, ready))
        return Tags(
            ensemble=self.served.name,
            pictures=[self._answer(name, one, top) for name, one in zip(names, found, strict=True)],
        )

    async def labels(self) -> Labels:
        """All labels, and the limits of a request."""
        served = self.served
        named = zip(served.label_ids, served.labels, strict=True)
        return Labels(
            ensemble=served.name,
            labels=[Label(id=label_id, name=name) for label_id, name in named],
            decided_by=served.decided_by,
            limits=dict(vars(self.limits)),
        )

    async def health(self) -> Health:
        """Whether pictures can be tagged now (200), or not (503). It needs no token."""
        if not await self.served.ready():
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "no model is ready: ask again in a moment")
        return Health(
            status="ok",
            pictures=self.pictures,
            pictures_per_batch=self.pictures / self.batches if self.batches else 0.0,
            model_seconds=self.model_seconds,
        )

    async def csv(self, request: Request) -> Response:
        """Labels that a person has chosen, as the table that `--tag` writes."""
        chosen = await self._chosen(request)
        served = self.served
        data = await asyncio.to_thread(csv_file, chosen, served.decided_by, served.tagged_by)
        return _download("tags.csv", data, CSV)

    async def xmp(self, request: Request) -> Response:
        """Labels that a person has chosen, as XMP sidecars: one file, or a zip of several."""
        found = await asyncio.to_thread(sidecars, await self._chosen(request), self.served.tagged_by)
        if len(found) == 1:
            return _download(*found.popitem(), "application/rdf+xml")
        return _download("tags.zip", zipped(found), "application/zip")

    async def _chosen(self, request: Request) -> Chosen:
        try:
            return Chosen.model_validate_json(await self.reader.text(request))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, f"{where or 'the body'}: {first['msg']}") from None

    def _answer(self, name: str, found: Tagged, top: int) -> TaggedPicture:
        self.pictures += 1
        self.batches += found.share
        self.model_seconds += found.seconds
        order = np.argsort(-found.probs, kind="stable")[:top]
        return TaggedPicture(
            name=name,
            labels=[self._probability(found, c) for c in found.chosen],
            decided_by=self.served.decided_by,
            probabilities=[self._probability(found, int(c)) for c in order],
        )

    def _probability(self, found: Tagged, c: int) -> Probability:
        probability = round(float(found.probs[c]), 4)
        return Probability(id=self.served.label_ids[c], name=self.served.labels[c], probability=probability)


def make_app(served: Served, *, limits: Limits | None = None, token: str | None = None) -> FastAPI:
    """The application.

    Args:
        token: that all requests for tags and labels must bring; None: nobody is asked.
    """
    server = TagServer(served, limits or Limits())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with server.decoder.pool:
            yield

    app = FastAPI(
        title=f"imet_ray: {served.name}",
        description="Labels for pictures, with calibrated probabilities.",
        version=imet_ray.__version__,
        docs_url=None,  # FastAPI's own pages fetch scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    app.include_router(_router(server, token))
    page = tagging_page()

    @app.get("/", include_in_schema=False, response_class=HTMLResponse)
    async def root() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": content_policy(page)})

    @app.get("/docs", include_in_schema=False, response_class=HTMLResponse)
    async def docs() -> HTMLResponse:
        text = api_page(app.openapi())
        return HTMLResponse(text, headers={"Content-Security-Policy": content_policy(text)})

    for kind in (ImetError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _error)
    app.add_middleware(_Headers)
    return app


def _router(server: TagServer, token: str | None) -> APIRouter:
    """What the page and other programs ask for."""
    open_to_all, router = APIRouter(), APIRouter(dependencies=[Depends(Access(token).check)])
    refusals: dict[int | str, dict[str, Any]] = {
        401: {"model": Error, "description": "without the token"},
        413: {"model": Error, "description": "too large, or too many"},
        422: {"model": Error, "description": "unreadable"},
        503: {"model": Error, "description": "busy: send it again in a moment"},
        "default": {"model": Error, "description": "whatever else is wrong"},
    }
    router.add_api_route(
        "/tag",
        server.tag,
        methods=["POST"],
        response_description="the labels of each picture",
        responses=refusals,
        openapi_extra={"requestBody": BODY},
    )
    router.add_api_route(
        "/labels",
        server.labels,
        response_description="the labels",
        responses={401: refusals[401], "default": refusals["default"]},
    )
    for path, answer, kind, what in (
        ("/csv", server.csv, "text/csv", "the table"),
        ("/xmp", server.xmp, "application/rdf+xml", "the sidecar; several as a zip"),
    ):
        content = {"content": {kind: {}}, "description": what}
        router.add_api_route(
            path,
            answer,
            methods=["POST"],
            response_class=Response,
            responses=refusals | {200: content},
            openapi_extra={"requestBody": {"required": True, "content": CHOSEN}},
        )
    open_to_all.add_api_route(
        "/healthz",
        server.health,
        response_description="ready, and what was done since the start",
        responses={503: {"model": Error, "description": "no model is ready"}},
    )
    open_to_all.include_router(router)
    return open_to_all


class _Headers:
    """Each answer says what a browser must not do with it."""

    SENT = (
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"cache-control", b"no-store"),
    )

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *self.SENT]
            await send(message)

        if scope["type"] == "http":
            asked = "GET" if scope["method"] == "HEAD" else scope["method"]  # the server leaves the body out
            await self.app({**scope, "method": asked}, receive, with_headers)
        else:
            await self.app(scope, receive, send)


async def _unless_gone(request: Request, works: Iterable[Awaitable[T]]) -> list[T]:
    """The results of work that is done together; it is given up if one fails, or if who asked has left."""
    tasks = [asyncio.ensure_future(work) for work in works]
    leaving = asyncio.ensure_future(request.receive())
    try:
        left: set[asyncio.Future[Any]] = {*tasks}
        while left:
            done, _ = await asyncio.wait({*left, leaving}, return_when=asyncio.FIRST_COMPLETED)
            left -= done
            for task in done - {leaving}:
                task.result()  # or its error, at once
            if left and leaving in done:
                raise Refused(HTTPStatus.BAD_REQUEST, CUT_OFF)
        return [task.result() for task in tasks]
    finally:
        for task in (*tasks, leaving):
            task.cancel()
        await asyncio.gather(*tasks, leaving, return_exceptions=True)


def _download(name: str, data: bytes, kind: str) -> Response:
    """A file that the browser saves."""
    safe = "".join(letter if letter.isalnum() or letter in ".-_" else "_" for letter in name)
    ascii_name = safe.encode("ascii", "replace").decode().replace("?", "_")
    shown = f"attachment; filename=\"{ascii_name}\"; filename*=UTF-8''{quote(name)}"
    return Response(data, media_type=kind, headers={"Content-Disposition": shown})


async def _error(request: Request, error: Exception) -> JSONResponse:
    """One line."""
    headers: dict[str, str] = {}
    if isinstance(error, Refused):
        status, text = error.status, str(error)
        if status == HTTPStatus.UNAUTHORIZED:
            headers["WWW-Authenticate"] = "Bearer"
        elif status == HTTPStatus.SERVICE_UNAVAILABLE:
            headers["Retry-After"] = "1"
    elif isinstance(error, HTTPException):
        status, text = HTTPStatus(error.status_code), f"{error.detail}: see /docs"
        headers |= error.headers or {}
    elif isinstance(error, RequestValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        status, text = HTTPStatus.UNPROCESSABLE_ENTITY, f"{where}: {first['msg']}" if where else first["msg"]
    else:
        status = HTTPStatus.INTERNAL_SERVER_ERROR
        text = str(error) if isinstance(error, ImetError) else "the server failed: its terminal says why"
    return JSONResponse({"error": " ".join(text.split())}, status, headers)
