"""Paths of this site: where a person was, and where they go back to. Nothing leads elsewhere."""

from urllib.parse import quote, urlsplit

from fastapi import Request

MOST = 512


def own_path(path: str) -> str:
    """``path`` if it stays on this site, else the first page: no open redirect."""
    plain = path.isascii() and path.isprintable() and "\\" not in path
    return path if plain and path.startswith("/") and not path.startswith("//") else "/"


def here(request: Request) -> str:
    """The page that is shown, with its query; after a form, the page that the form stood on."""
    if request.method == "GET" and "hx-request" not in request.headers:
        query = f"?{request.url.query}" if request.url.query else ""
        path = f"{quote(request.url.path)}{query}"
    else:
        sent = urlsplit(request.headers.get("hx-current-url") or request.headers.get("referer", ""))
        path = f"{sent.path}?{sent.query}" if sent.query else sent.path
    return own_path(path) if len(path) <= MOST else "/"
