"""What a spot machine is told of its end, by a service that speaks as AWS's metadata do."""

import http.server
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from imet_ray.cluster import spot


@pytest.fixture
def service() -> Iterator[http.server.ThreadingHTTPServer]:
    """Says what its `told` holds: a status and a body."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            assert self.path == "/latest/api/token"
            assert int(self.headers["X-aws-ec2-metadata-token-ttl-seconds"]) > 0
            self.say(200, "a-token")

        def do_GET(self) -> None:
            assert self.path == "/latest/meta-data/spot/instance-action"
            allowed = self.headers["X-aws-ec2-metadata-token"] == "a-token"
            self.say(*(self.server.told.pop(0) if allowed else (401, "")))

        def say(self, status: int, text: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.told = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def url(server) -> str:
    return f"http://127.0.0.1:{server.server_port}"


NOTICE = (200, '{"action": "terminate", "time": "2026-11-26T08:22:00Z"}')
END = datetime(2026, 11, 26, 8, 22, tzinfo=UTC)


def test_a_notice_says_when_the_machine_goes(service):
    service.told = [NOTICE]
    assert spot.notice(url(service)) == END


def test_without_a_notice_there_is_no_end(service):
    service.told = [(404, "not found")]
    assert spot.notice(url(service)) is None


@pytest.mark.parametrize("text", ["{}", "[]", "soon", '{"time": "soon"}', '{"time": 3}'])
def test_a_notice_that_cannot_be_read_is_taken_for_two_minutes(service, text, capsys):
    service.told = [(200, text)]
    left = spot.notice(url(service)) - datetime.now(UTC)
    assert timedelta(seconds=110) < left <= timedelta(seconds=121)
    assert "a notice without a time" in capsys.readouterr().err


def test_the_notice_is_waited_for_through_faults_of_the_service(service, monkeypatch):
    monkeypatch.setattr(spot, "LOOK_S", 0.01)
    service.told = [(404, ""), (503, ""), (404, ""), NOTICE]
    assert spot.wait(url(service)) == END
    assert not service.told


def test_the_service_is_awss_unless_the_environment_names_another(monkeypatch):
    monkeypatch.delenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", raising=False)
    assert spot.metadata() == "http://169.254.169.254"
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:8/")
    assert spot.metadata() == "http://127.0.0.1:8"
