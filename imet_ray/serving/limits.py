"""What a request may hold: what is more is refused with one line, before it is decoded."""

from dataclasses import dataclass
from http import HTTPStatus

from imet_ray.errors import ImetError

MB = 10**6


class Refused(ImetError):
    """A request that is not answered as it wanted to be: an HTTP status and one line."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(" ".join(text.split()))
        self.status = status


@dataclass(frozen=True)
class Limits:
    """Of each request, and of all that are answered at once."""

    pictures: int = 64  # of a request
    picture_bytes: int = 32 * MB
    request_bytes: int = 128 * MB
    pixels: int = (
        100_000_000  # of a picture, and of all that are decoded at once: they take 1 to 4 GB for a moment
    )
    waiting_bytes: int = 512 * MB  # of all requests at once
    silent_seconds: int = 60  # between two pieces of a request

    def check_picture(self, name: str, size: int) -> None:
        """Refuse a file of too many bytes, or none."""
        if size > self.picture_bytes:
            raise Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"{name} has {size / MB:.1f} MB: a picture may have {self.picture_bytes / MB:g}",
            )
        if not size:
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, f"{name} is empty")

    def check_count(self, count: int) -> None:
        """Refuse too many pictures."""
        if count > self.pictures:
            raise Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"more than {self.pictures} pictures: send them in several requests",
            )

    def check_request(self, size: int) -> None:
        """Refuse a request of too many bytes."""
        if size > self.request_bytes:
            raise Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"more than {self.request_bytes / MB:g} MB in one request: send fewer pictures at once",
            )

    def check_text(self, size: int) -> None:
        """Refuse a request without pictures of more bytes than a picture may have: read, it takes ten times that."""
        if size > self.picture_bytes:
            raise Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"more than {self.picture_bytes / MB:g} MB in one request: send fewer pictures at once",
            )

    def check_pixels(self, name: str, pixels: int) -> None:
        """Refuse a picture that would take too much memory, such as a decompression bomb."""
        if pixels > self.pixels:
            raise Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"{name} has {pixels / MB:.0f} million pixels: a picture may have {self.pixels / MB:g} million",
            )
