"""Whether an endpoint is there at all, before thousands of requests find out one by one."""

from __future__ import annotations

import socket
import urllib.request
from urllib.parse import urlsplit

from fedscale.errors import UserError

SECONDS = 5


def check_reachable(base_url: str) -> None:
    """Raises UserError when nothing listens at `base_url`, or its host has no address.

    Behind a proxy only the proxy knows; and an endpoint that is slow to accept may be there: both pass.
    """
    parts = urlsplit(base_url)
    if not parts.hostname:
        raise UserError(
            f"caption.openai.base_url={base_url}: names no host; expected http://HOST/v1 or https://HOST/v1"
        )
    if urllib.request.getproxies().get(parts.scheme) and not urllib.request.proxy_bypass(parts.hostname):
        return
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname, port), timeout=SECONDS).close()
    except TimeoutError:
        return
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(
            f"caption.openai.base_url={base_url}: cannot be reached ({reason}); start the endpoint, or name another"
        ) from None
