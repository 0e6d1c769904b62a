"""One static page to talk to the model: no build step, nothing from another host.

The browser is told to load and to reach nothing but this server. Knows the file.
"""

from __future__ import annotations

import functools
from importlib import resources

from starlette.responses import HTMLResponse, Response

_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


def page() -> Response:
    """``index.html``."""
    headers = {"content-security-policy": _POLICY, "cache-control": "no-cache", "vary": "accept"}
    return HTMLResponse(_html(), headers=headers)


@functools.cache
def _html() -> str:
    return (resources.files("mserve.server.page") / "index.html").read_text(encoding="utf-8")
