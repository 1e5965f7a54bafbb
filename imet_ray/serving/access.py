"""Whom the server answers: who has the token; without one, this machine's own programs and pages."""

import ipaddress
import secrets
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from imet_ray.serving.limits import Refused

HEADER = "If the server was started with a --token, send the header Authorization: Bearer TOKEN."
BEARER = HTTPBearer(auto_error=False, description=HEADER)


@dataclass(frozen=True)
class Access:
    """Who may ask for tags and labels."""

    token: str | None  # None: nobody is asked for one

    async def check(
        self, request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)]
    ) -> None:
        """Refuse who has not the token; without one, what pages of other sites send."""
        if self.token is None:
            return _refuse_other_sites(request)
        sent = given.credentials if given is not None else ""
        if not secrets.compare_digest(sent.encode(), self.token.encode()):
            raise Refused(HTTPStatus.UNAUTHORIZED, "send the server's token: Authorization: Bearer TOKEN")


def _refuse_other_sites(request: Request) -> None:
    """Refuse what a browser sends for another site's page, which nobody who sits at this machine has asked for.

    Such a page may send to 127.0.0.1, or have a name of its own lead there (DNS rebinding).
    """
    host = request.headers.get("host", "")
    if not _is_loopback(host):
        raise Refused(
            HTTPStatus.MISDIRECTED_REQUEST,
            f"without a --token only this machine's own address is answered, not {host[:100]}",
        )
    if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise Refused(HTTPStatus.FORBIDDEN, "pages of other sites are not answered")


def _is_loopback(host: str) -> bool:
    """Whether a request's Host, which programs may leave out, names this machine."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name in ("", "localhost") or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
