"""What the two pages in the browser share: `serve --ui` and `review`.

The files of `static/` are sent as they are. They load nothing from elsewhere, and no page of another origin can frame
them, read what they are answered, or post in their name.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from urllib.parse import urlsplit

_KINDS = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
_FILES = frozenset({"calls.js", "style.css", "try.html", "try.js", "review.html", "review.js"})
# For every answer to a page. Nothing inline runs, and nothing is fetched but from where the page came from.
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


def page_file(name: str) -> tuple[bytes, str] | None:
    """The bytes and the content type of a file of `static/`; None for another name."""
    if name not in _FILES:
        return None
    data = resources.files("tinydispatch.pages").joinpath("static", name).read_bytes()
    return data, f"{_KINDS[name.rpartition('.')[2]]}; charset=utf-8"


def is_foreign(headers: Mapping[str, str]) -> bool:
    """Whether a browser sent a request for a page of another origin; header names are in lower case.

    Programs that are no browser send neither header.
    """
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return True
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != headers.get("host", "")
