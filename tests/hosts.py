"""Hosts of a network on this machine: each has its own address, processes, /tmp, home and sshd, and can be unplugged.

Network namespaces on a bridge, with PID and mount namespaces of their own. Needs root, iproute2, openssh-server, rsync.
"""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

NEEDED = ("ip", "sshd", "ssh", "ssh-keygen", "rsync", "unshare", "nsenter")
NETWORK = f"10.77.{os.getpid() % 200}"
HOME = "/mnt/home"  # of root, on each host
SHARED = "/mnt/shared"  # one folder for all


def missing() -> str | None:
    """Why there can be no hosts here; None if there can."""
    if os.geteuid() != 0:
        return "hosts need root"
    lacking = [name for name in NEEDED if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if lacking:
        return f"hosts need {', '.join(lacking)} (iproute2, openssh-server, rsync, util-linux)"
    test = f"imt{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", test], capture_output=True, check=False).returncode:
        return "no network namespaces are allowed here"
    subprocess.run(["ip", "netns", "del", test], check=False)
    return None


@dataclass
class Host:
    """One of them."""

    name: str
    address: str
    init: subprocess.Popen  # PID 1 of it: when it dies, all of its processes do

    def run(self, command: str) -> subprocess.CompletedProcess:
        """A command on it, with its root's home and environment."""
        enter = ["nsenter", "-t", str(self.pid), "-a", "env", "-i", f"HOME={HOME}", "TERM=dumb"]
        return subprocess.run(
            [
                *enter,
                "bash",
                "-c",
                f"cd {HOME}; PATH=/usr/sbin:/usr/bin:/sbin:/bin; source .bashrc; {command}",
            ],
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def pid(self) -> int:
        """Of its PID 1, as we see it."""
        children = Path(f"/proc/{self.init.pid}/task/{self.init.pid}/children").read_text().split()
        return int(children[0])

    def unplug(self) -> None:
        """Its cable is pulled: all runs on, and nobody reaches it."""
        subprocess.run(["ip", "link", "set", f"{self.name}o", "down"], check=True)

    def plug(self) -> None:
        subprocess.run(["ip", "link", "set", f"{self.name}o", "up"], check=True)

    def power_off(self) -> None:
        """All of its processes die at once."""
        os.kill(self.pid, 9)
        self.init.wait()


@contextlib.contextmanager
def hosts(folder: Path, count: int, *, in_common: Sequence[str] = ()) -> Iterator[tuple[list[Host], Path]]:
    """Hosts that share `folder/shared` as `/mnt/shared`, and the private key that opens them.

    Args:
        in_common: folders in root's home that are one for all.
    """
    tag = f"im{os.getpid() % 10000}"
    bridge = f"{tag}b"
    key = folder / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    (folder / "shared").mkdir()
    found: list[Host] = []
    ip = ["ip", "link"]
    subprocess.run([*ip, "add", bridge, "type", "bridge"], check=True)
    try:
        subprocess.run(["ip", "addr", "add", f"{NETWORK}.1/24", "dev", bridge], check=True)
        subprocess.run([*ip, "set", bridge, "up"], check=True)
        for n in range(count):
            found.append(_host(folder, f"{tag}h{n}", f"{NETWORK}.{10 + n}", bridge, key, in_common))
        for host in found:
            _wait_for_ssh(host, key)
        yield found, key
    finally:
        for host in found:
            with contextlib.suppress(OSError, IndexError):
                host.power_off()
            subprocess.run([*ip, "del", f"{host.name}o"], check=False)
            subprocess.run(["ip", "netns", "del", host.name], check=False)
        subprocess.run([*ip, "del", bridge], check=False)


def _host(
    folder: Path,
    name: str,
    address: str,
    bridge: str,
    key: Path,
    in_common: Sequence[str],
) -> Host:
    own = folder / name
    home, etc = own / "home", own / "etc"
    for path in (home, etc, own / "tmp"):
        path.mkdir(parents=True)
    (etc / "passwd").write_text(
        f"root:x:0:0:root:{HOME}:/bin/bash\nsshd:x:106:65534::/run/sshd:/usr/sbin/nologin\n"
    )
    (home / ".bashrc").write_text("")
    (home / ".local" / "bin").mkdir(parents=True)
    uv = os.environ.get("UV") or shutil.which("uv")
    if uv is not None:
        (home / ".local" / "bin" / "uv").symlink_to(Path(uv).resolve())
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(etc / "host_key")], check=True)
    (etc / "authorized_keys").write_text(key.with_suffix(".pub").read_text())
    (etc / "sshd_config").write_text(
        "HostKey /mnt/etc/host_key\nAuthorizedKeysFile /mnt/etc/authorized_keys\nPermitRootLogin yes\nUsePAM no\n"
        "StrictModes no\nPasswordAuthentication no\nPidFile none\nSubsystem sftp internal-sftp\n"
        f"SetEnv UV_CACHE_DIR={_uv_cache()} UV_OFFLINE=1\n"
    )
    commands = [
        ["netns", "add", name],
        ["link", "add", f"{name}o", "type", "veth", "peer", "name", "eth0", "netns", name],
        ["link", "set", f"{name}o", "master", bridge],
        ["link", "set", f"{name}o", "up"],
        ["-n", name, "addr", "add", f"{address}/24", "dev", "eth0"],
        ["-n", name, "link", "set", "eth0", "up"],
        ["-n", name, "link", "set", "lo", "up"],
        [
            "-n",
            name,
            "route",
            "add",
            "default",
            "via",
            f"{NETWORK}.1",
        ],  # by its route Ray finds a host's address
    ]
    for command in commands:
        subprocess.run(["ip", *command], check=True)
    # uv's cache lies there where it lies here, though that be in /tmp: bound first to a place that will not be covered
    cache = _uv_cache()
    early = f"mkdir /mnt/uv && mount --bind {cache} /mnt/uv\n" if Path(cache).is_dir() else ""
    covered = f"mkdir -p {cache} && mount --bind /mnt/uv {cache}\n" if early else ""
    for path in in_common:
        (folder / "common" / path).mkdir(parents=True, exist_ok=True)
        early += f"mkdir -p /mnt/home/{path} && mount --bind {folder}/common/{path} /mnt/home/{path}\n"
    start = f"""
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /mnt
mkdir -p /mnt/home /mnt/etc /mnt/shared
mount --bind {home} /mnt/home
mount --bind {etc} /mnt/etc
mount --bind {folder}/shared /mnt/shared
{early}mount --bind {etc}/passwd /etc/passwd
mount --bind {own}/tmp /tmp
{covered}mount -t tmpfs tmpfs /dev/shm
mount -t proc proc /proc
hostname {name}
mkdir -p /run/sshd
/usr/sbin/sshd -D -e -f /mnt/etc/sshd_config &
while :; do wait || true; sleep 1; done
"""
    with (own / "log").open("wb") as log:
        init = subprocess.Popen(
            [
                "ip",
                "netns",
                "exec",
                name,
                *("unshare", "--pid", "--mount", "--uts", "--ipc", "--fork"),
                "bash",
                "-c",
                start,
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
    return Host(name, address, init)


def copy_environment(source: Path, target: Path, place: str) -> None:
    """A virtual environment that shares its files with `source`, for `uv sync` to find nothing to do.

    Args:
        place: where the hosts see it.
    """
    subprocess.run(["cp", "-a", "--link", f"{source}/.", str(target)], check=True)
    for script in (target / "bin").iterdir():
        if script.is_file() and not script.is_symlink() and (text := script.read_bytes()).startswith(b"#!"):
            script.unlink()  # else the other environment's is written
            script.write_bytes(text.replace(f"{source}/bin".encode(), f"{place}/bin".encode()))
            script.chmod(0o755)


def _uv_cache() -> str:
    return os.environ.get("UV_CACHE_DIR", str(Path("~/.cache/uv").expanduser()))


def _wait_for_ssh(host: Host, key: Path) -> None:
    options = [
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "UserKnownHostsFile=/dev/null",
        "-o",
        "ConnectTimeout=2",
    ]
    for _ in range(50):
        command = ["ssh", "-q", *options, "-i", str(key), f"root@{host.address}", "true"]
        if subprocess.run(command, check=False).returncode == 0:
            return
        time.sleep(0.2)
    raise AssertionError(f"no ssh on {host.name}")
