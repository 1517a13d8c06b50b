"""A port for a test's own launcher."""

import socket


def free_port() -> str:
    """One that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
