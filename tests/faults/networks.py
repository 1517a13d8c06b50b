"""Two networks of this machine, joined by a cable that can be pulled out: as launch/two_nodes.sh makes them."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
NEW_NETWORK = 0x40000000  # CLONE_NEWNET


@dataclass(frozen=True)
class Network:
    """One host's network: an interface, which is one end of the cable, and its own 127.0.0.1."""

    name: str
    address: str
    interface: str = "eth0"

    def enter(self) -> None:
        """This process, and the threads that it starts from now on, are in this network."""
        namespace = os.open(f"/run/netns/{self.name}", os.O_RDONLY)
        if ctypes.CDLL(None, use_errno=True).setns(namespace, NEW_NETWORK):
            raise OSError(ctypes.get_errno(), "setns")
        os.close(namespace)

    def cut(self) -> None:
        """Pull the cable out."""
        _ip("-netns", self.name, "link", "set", self.interface, "down")


def why_not() -> str:
    """Why there can be no networks here; empty where there can."""
    if os.geteuid() != 0 or shutil.which("ip", path=PATH) is None:
        return "networks of their own need root and ip (iproute2)"
    probe = f"fedscale-probe-{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", probe], env={**os.environ, "PATH": PATH}, capture_output=True).returncode:
        return "ip netns add: not permitted (CAP_NET_ADMIN, CAP_SYS_ADMIN)"
    _ip("netns", "delete", probe)
    return ""


@contextmanager
def two_networks(name: str) -> Iterator[tuple[Network, Network]]:
    """They and their cable are gone after the block."""
    pair = tuple(Network(f"{name}-{side}-{os.getpid()}", f"10.98.0.{n}") for n, side in ((1, "left"), (2, "right")))
    left, right = pair
    try:
        for network in pair:
            _ip("netns", "add", network.name)
        _ip("-netns", left.name, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", right.name)
        for network in pair:
            _ip("-netns", network.name, "address", "add", f"{network.address}/24", "dev", "eth0")
            _ip("-netns", network.name, "link", "set", "eth0", "up")
            _ip("-netns", network.name, "link", "set", "lo", "up")
        yield left, right
    finally:
        for network in pair:
            if Path(f"/run/netns/{network.name}").exists():
                _ip("netns", "delete", network.name)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], env={**os.environ, "PATH": PATH}, check=True, capture_output=True)
