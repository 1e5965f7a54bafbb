"""What the HTTP interface answers, and what it refuses. The models are a stand-in: real ones are in test_serve_tags."""

import asyncio
import contextlib
import gzip
import http.client
import json
import struct
import threading
import zlib

import pytest
from served import LABELS, SMALL, asking, png, refused, served, tag_by_colour

from imet_ray.errors import StoreError
from imet_ray.serving.app import make_app
from imet_ray.serving.limits import Limits
from imet_ray.serving.uploads import base_name

TOKEN = "a-token-of-24-characters"


@pytest.fixture(scope="module")
def ask():
    with asking(make_app(served(), limits=SMALL)) as client:
        yield client


def form(*pictures: bytes) -> list:
    return [("picture", (f"{i}.png", data, "image/png")) for i, data in enumerate(pictures)]


def bomb(width: int = 30_000, height: int = 30_000) -> bytes:
    """A small file that announces many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_bytes_of_one_picture_are_tagged(ask):
    answer = ask.post("/tag?name=folder/a.png", content=png("red")).json()
    (found,) = answer["pictures"]
    assert answer["ensemble"] == "colours"
    assert (found["name"], found["decided_by"]) == ("a.png", "brightness")
    assert found["labels"] == [{"id": "0", "name": "red", "probability": 0.95}]
    assert [one["probability"] for one in found["probabilities"]] == [0.95, 0.05, 0.05, 0.01]


def test_a_form_of_many_pictures_is_answered_in_its_order(ask):
    answer = ask.post("/tag", files=form(png("red"), png("lime"), png("blue", kind="JPEG"))).json()
    assert [one["name"] for one in answer["pictures"]] == ["0.png", "1.png", "2.png"]
    assert [one["labels"][0]["name"] for one in answer["pictures"]] == list(LABELS[:3])


def test_as_many_probabilities_come_as_are_asked_for(ask):
    (found,) = ask.post("/tag?top=2", content=png("yellow")).json()["pictures"]
    assert [one["name"] for one in found["probabilities"]] == ["red", "green"]
    assert ask.post("/tag?top=0", content=png()).json()["pictures"][0]["probabilities"] == []
    assert "top" in refused(ask.post("/tag?top=-1", content=png()), 422)


@pytest.mark.parametrize("data", [b"no picture", png()[:60], b"\xff\xd8\xff", b"GIF89a"])
def test_what_cannot_be_read_is_refused_by_its_name(ask, data):
    assert "b.png" in refused(ask.post("/tag?name=b.png", content=data), 422)


def test_an_empty_request_is_refused(ask):
    assert "empty" in refused(ask.post("/tag"), 422)
    assert "no picture" in refused(
        ask.post("/tag", content=b"--x--\r\n", headers={"content-type": "multipart/form-data; boundary=x"}),
        422,
    )
    broken = ask.post("/tag", content=b"abc", headers={"content-type": "multipart/form-data"})
    assert "boundary" in refused(broken, 422)
    assert "no file" in refused(ask.post("/tag", data={"a": "b"}, files=form(png())), 422)


def test_one_unreadable_picture_refuses_its_request_and_is_named(ask):
    assert "1.png" in refused(ask.post("/tag", files=form(png(), b"no picture")), 422)


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(ask):
    assert "million pixels" in refused(ask.post("/tag", content=png(size=(101, 100))), 413)
    assert ask.post("/tag", content=png(size=(100, 100))).status_code == 200


def test_a_decompression_bomb_is_refused(ask):
    assert "bomb" in refused(ask.post("/tag", content=bomb()), 413)


def test_a_picture_of_too_many_bytes_is_refused(ask):
    large = png() + bytes(2000)
    assert "2.1 MB" not in refused(ask.post("/tag", content=large), 413)
    assert "a picture may have" in refused(ask.post("/tag", files=form(large)), 413)


def test_too_many_pictures_are_refused(ask):
    assert "more than 3 pictures" in refused(ask.post("/tag", files=form(*[png()] * 4)), 413)


def test_a_request_that_announces_too_much_is_refused_unread(ask):
    connection = http.client.HTTPConnection(ask.base_url.host, ask.base_url.port, timeout=20)
    connection.putrequest("POST", "/tag")
    connection.putheader("Content-Length", "5001")
    connection.endheaders()
    with contextlib.closing(connection):
        answer = connection.getresponse()
        assert answer.status == 413
        assert "in one request" in json.load(answer)["error"]


def test_a_request_that_announces_nothing_is_refused_when_it_has_become_too_large(ask):
    one = b'--x\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n'

    def body():
        yield one
        for _ in range(9):
            yield bytes(1000)

    answer = ask.post("/tag", content=body(), headers={"content-type": "multipart/form-data; boundary=x"})
    assert "in one request" in refused(answer, 413)


def test_requests_beyond_the_room_are_put_off_and_the_room_is_free_again():
    limits = Limits(picture_bytes=2000, request_bytes=2000, waiting_bytes=1500)
    with asking(make_app(served(), limits=limits)) as ask:
        for _ in range(3):
            answer = ask.post("/tag", content=png() + bytes(1600))
            assert "wait already" in refused(answer, 503)
            assert answer.headers["retry-after"] == "1"
        for _ in range(20):
            assert ask.post("/tag", content=png()).status_code == 200


def test_without_the_token_nothing_is_said(ask):
    with asking(make_app(served(), token=TOKEN)) as ask:
        for given in ({}, {"authorization": "Bearer x"}, {"authorization": f"Basic {TOKEN}"}):
            for method, path in (("POST", "/tag"), ("GET", "/labels"), ("POST", "/csv"), ("POST", "/xmp")):
                answer = ask.request(method, path, headers=given, content=png())
                assert "token" in refused(answer, 401)
                assert answer.headers["www-authenticate"] == "Bearer"
        for path in ("/", "/healthz", "/docs", "/openapi.json"):
            answer = ask.get(path)
            assert answer.status_code == 200
            assert not any(label in answer.text for label in LABELS[2:])


def test_with_the_token_pictures_are_tagged(ask):
    with asking(make_app(served(), token=TOKEN), headers={"authorization": f"Bearer {TOKEN}"}) as ask:
        assert ask.post("/tag", content=png()).status_code == 200
        assert ask.get("/labels").status_code == 200


def test_pages_ask_for_no_icon(ask):
    assert all('<link rel="icon" href="data:,">' in ask.get(path).text for path in ("/", "/docs"))


def test_labels_and_limits_are_told(ask):
    told = ask.get("/labels").json()
    assert [one["name"] for one in told["labels"]] == list(LABELS)
    assert told["limits"]["picture_bytes"] == 2000


def test_health_is_whether_a_model_is_ready():
    state = [True]

    async def ready() -> bool:
        return state[0]

    with asking(make_app(served(ready=ready))) as ask:
        ask.post("/tag", content=png())
        told = ask.get("/healthz").json()
        assert told == {"status": "ok", "pictures": 1, "pictures_per_batch": 2.0, "model_seconds": 0.001}
        state[0] = False
        assert "no model" in refused(ask.get("/healthz"), 503)


def test_a_failure_of_the_models_is_one_line():
    async def fails(prepared):
        raise StoreError("a.safetensors predicts NaN:\ntrain it again")

    with asking(make_app(served(tag=fails))) as ask:
        assert refused(ask.post("/tag", content=png()), 500).startswith("a.safetensors predicts NaN: train")


def test_a_bug_is_one_line_without_its_insides():
    async def fails(prepared):
        raise KeyError("inside")

    with asking(make_app(served(tag=fails))) as ask:
        assert "inside" not in refused(ask.post("/tag", content=png()), 500)


def test_unknown_addresses_and_methods_are_one_line(ask):
    assert "docs" in refused(ask.get("/nothing"), 404)
    assert "docs" in refused(ask.get("/tag"), 405)


def test_many_requests_at_once_get_their_own_answers(ask):
    found = {}

    def send(i: int) -> None:
        colour = [0, 0, 0]
        colour[i % 3] = 255
        answer = ask.post(f"/tag?name={i}.png", content=png(tuple(colour))).json()["pictures"][0]
        found[i] = (answer["name"], answer["labels"][0]["id"])

    threads = [threading.Thread(target=send, args=(i,)) for i in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: (f"{i}.png", str(i % 3)) for i in range(24)}


def test_the_page_runs_its_own_scripts_and_nothing_else(ask):
    for path in ("/", "/docs"):
        answer = ask.get(path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert "http://" not in answer.text
        assert "https://" not in answer.text
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_interface_describes_itself(ask):
    schema = ask.get("/openapi.json").json()
    assert set(schema["paths"]) == {"/tag", "/labels", "/csv", "/xmp", "/healthz"}
    body = schema["paths"]["/tag"]["post"]["requestBody"]["content"]
    assert set(body) == {"multipart/form-data", "application/octet-stream"}
    page = ask.get("/docs").text
    assert "pictures[] (name, labels[] (id, name, probability), decided_by," in page
    assert "pictures[] (name, labels[] (name, probability), edited), decided_by" in page
    assert "curl -F picture=@a.jpg" in page
    assert "Authorization: Bearer TOKEN" in page
    for path in schema["paths"]:
        assert path in page


def test_head_is_answered_as_get_without_its_body(ask):
    for path in ("/", "/healthz", "/labels"):
        answer = ask.head(path)
        assert (answer.status_code, answer.content) == (200, b"")
    assert ask.head("/tag").headers["allow"] == "POST"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8268", "127.0.0.1.evil.example", "192.0.2.2", "[x"]
)
def test_without_a_token_no_other_name_is_answered(ask, host):
    assert "own address" in refused(ask.get("/labels", headers={"host": host}), 421)
    assert "own address" in refused(ask.post("/tag", content=png(), headers={"host": host}), 421)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8268", "[::1]:8268", "127.9.9.9"])
def test_each_name_of_loopback_is_answered(ask, host):
    assert ask.get("/labels", headers={"host": host}).status_code == 200


def test_without_a_token_pages_of_other_sites_are_not_answered(ask):
    for site in ("cross-site", "same-site"):
        assert "other sites" in refused(
            ask.post("/tag", content=png(), headers={"sec-fetch-site": site}), 403
        )
    assert ask.post("/tag", content=png(), headers={"sec-fetch-site": "same-origin"}).status_code == 200


def test_with_a_token_any_name_is_answered():
    with asking(make_app(served(), token=TOKEN), headers={"authorization": f"Bearer {TOKEN}"}) as ask:
        assert ask.get("/labels", headers={"host": "tags.museum.example"}).status_code == 200


def test_a_request_of_which_nothing_comes_any_more_is_ended_and_its_room_is_free():
    limits = Limits(picture_bytes=2000, request_bytes=2000, waiting_bytes=2000, silent_seconds=1)
    with asking(make_app(served(), limits=limits)) as ask:
        for _ in range(2):
            connection = http.client.HTTPConnection(ask.base_url.host, ask.base_url.port, timeout=20)
            connection.putrequest("POST", "/tag")
            connection.putheader("Content-Length", "1900")
            connection.endheaders()
            with contextlib.closing(connection):
                connection.send(bytes(1800))
                answer = connection.getresponse()
                assert answer.status == 408
                assert "nothing came" in json.load(answer)["error"]


def test_what_waits_for_the_models_is_limited_too():
    tagged, go = threading.Event(), threading.Event()

    async def slow(prepared):
        tagged.set()
        await asyncio.to_thread(go.wait, 20)
        return await tag_by_colour(prepared)

    limits = Limits(waiting_bytes=1500)  # a picture has 768 bytes as the models see it
    with asking(make_app(served(tag=slow), limits=limits)) as ask:
        first = threading.Thread(target=ask.post, args=("/tag",), kwargs={"content": png()})
        first.start()
        assert tagged.wait(20)
        assert "wait already" in refused(ask.post("/tag", content=png()), 503)
        go.set()
        first.join()
        assert ask.post("/tag", content=png()).status_code == 200


def test_who_has_left_is_not_worked_for():
    begun, left = threading.Event(), threading.Event()

    async def endless(prepared):
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    with asking(make_app(served(tag=endless), limits=Limits(waiting_bytes=1500))) as ask:
        for _ in range(3):
            begun.clear()
            left.clear()
            connection = http.client.HTTPConnection(ask.base_url.host, ask.base_url.port, timeout=20)
            connection.request("POST", "/tag", png())
            assert begun.wait(20)
            connection.close()
            assert left.wait(20)


@pytest.mark.parametrize(
    "name",
    [
        "عکس\u200cها.jpg",  # Persian has a non-joiner within words
        "Screenshot 9.41.00\u202fPM.png",  # macOS writes a narrow hard space
        "👩\u200d🎨 é \u00a0.jpg",
        "a" * 251 + ".jpg",
    ],
)
def test_a_file_keeps_its_name_whatever_its_letters(ask, name):
    (found,) = ask.post("/tag", files=[("picture", (name, png()))]).json()["pictures"]
    assert found["name"] == name
    (found,) = ask.post("/tag", params={"name": name}, content=png()).json()["pictures"]
    assert found["name"] == name


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\pictures\\a.jpg", "a.jpg"),
        ("a\0\r\n\x1b[1m.jpg", "a[1m.jpg"),
        ("é" * 200, "é" * 127),
        ("", "picture"),
        ("/", "picture"),
    ],
)
def test_a_name_has_no_folders_and_no_control_characters(sent, expected):
    assert base_name(sent) == expected


def test_a_form_of_thousands_of_parts_is_refused(ask):
    part = b'--x\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n\r\n'
    headers = {"content-type": "multipart/form-data; boundary=x"}
    assert "more than 3 pictures" in refused(ask.post("/tag", content=part * 70, headers=headers), 413)


def test_packed_bodies_are_refused_by_their_name(ask):
    answer = ask.post("/tag", content=gzip.compress(png()), headers={"content-encoding": "gzip"})
    assert "gzip is not read" in refused(answer, 415)
