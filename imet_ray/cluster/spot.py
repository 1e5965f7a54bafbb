"""A spot machine's last two minutes: AWS announces that it takes it back, and Ray is told to start nothing there.

    python -m imet_ray.cluster.spot HEAD:6379

runs on each worker of `cluster.yaml`, beside Ray. What trains on goes on until the end, an epoch at a time, and then
elsewhere; Tune does not count it as a failure. On a machine that is no spot machine it waits for nothing.
"""

import argparse
import contextlib
import http.client
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

from imet_ray.command_line import exit_code
from imet_ray.errors import ConfigError

METADATA = (
    "http://169.254.169.254"  # of AWS, the same on each machine; $AWS_EC2_METADATA_SERVICE_ENDPOINT in tests
)
TOKEN_S = 21600
LOOK_S = 5.0  # as AWS advises
ANSWER_S = 2.0


def main() -> int:
    """Wait for the notice, then drain this node."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("head", metavar="HOST:PORT", help="of the cluster's head")
    parser.add_argument("--node", metavar="ID", help="Ray's id of the node; default: the one on this machine")
    options = parser.parse_args()
    return exit_code(
        lambda: _drain(options.head, options.node, wait(metadata())), "this machine is not watched any more"
    )


def metadata() -> str:
    """Where the machine's metadata are asked for."""
    return os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", METADATA).rstrip("/")


def wait(service: str) -> datetime:
    """When this machine will be taken back; returns as soon as that is known."""
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):  # no metadata for a moment
            found = notice(service)
            if found is not None:
                return found
        time.sleep(LOOK_S)


def notice(service: str) -> datetime | None:
    """The time of an announced end, None if none is (AWS: "Spot Instance interruption notices", IMDSv2).

    Raises:
        OSError: if the metadata cannot be had.
    """
    ask = urllib.request.Request(
        f"{service}/latest/api/token",
        method="PUT",
        headers={"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_S)},
    )
    with urllib.request.urlopen(ask, timeout=ANSWER_S) as answer:
        token = answer.read().decode("latin-1")
    ask = urllib.request.Request(
        f"{service}/latest/meta-data/spot/instance-action", headers={"X-aws-ec2-metadata-token": token}
    )
    try:
        with urllib.request.urlopen(ask, timeout=ANSWER_S) as answer:
            told = json.loads(answer.read())
        return datetime.fromisoformat(told["time"])
    except urllib.error.HTTPError as error:
        if error.code == 404:  # nothing announced
            return None
        raise
    except (ValueError, KeyError, TypeError) as error:  # announced, in words of which we know too little
        print(f"spot: a notice without a time ({error}): two minutes, then", file=sys.stderr)
        return datetime.fromtimestamp(time.time() + 120, UTC)


def _drain(head: str, node: str | None, end: datetime) -> int:
    """Tell Ray that the node goes at `end`."""
    node = node or _this_node(head)
    while (done := _ask(head, node, end)).returncode:
        if time.time() > end.timestamp():
            raise ConfigError(f"Ray does not drain this node: {(done.stderr or done.stdout).strip()[-300:]}")
        time.sleep(LOOK_S)
    print(
        f"spot: this node ({node}) goes at {end:%H:%M:%S} UTC: Ray starts nothing here any more", flush=True
    )
    return 0


def _ask(head: str, node: str, end: datetime) -> "subprocess.CompletedProcess[str]":
    left = max(0, int(end.timestamp() - time.time()))
    return subprocess.run(
        [
            *(str(Path(sys.executable).with_name("ray")), "drain-node", "--address", head, "--node-id", node),
            *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot notice"),
            *("--deadline-remaining-seconds", str(left)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )


def _this_node(head: str) -> str:
    import ray

    ray.init(address=head, log_to_driver=False, logging_level="ERROR")
    try:
        return str(ray.get_runtime_context().get_node_id())
    finally:
        ray.shutdown()


if __name__ == "__main__":
    raise SystemExit(main())
