"""Errors as the edge shows them: problem documents (RFC 9457) for programs, pages and notices for people.

Only here does an error of the tree get an HTTP status. ``detail`` says what to do.
"""

from collections.abc import Mapping
from http import HTTPStatus
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from pupitre.errors import (
    Conflict,
    Forbidden,
    Invalid,
    LimitReached,
    NotFound,
    NotSignedIn,
    PupitreError,
    TooEarly,
    Unavailable,
)
from pupitre.portal.http.paths import here
from pupitre.portal.http.templates import render

MEDIA_TYPE = "application/problem+json"

_STATUS: tuple[tuple[type[PupitreError], int], ...] = (
    (NotFound, 404),
    (NotSignedIn, 401),
    (Forbidden, 403),
    (TooEarly, 429),
    (LimitReached, 409),
    (Conflict, 409),
    (Invalid, 422),
    (Unavailable, 503),
)
_WORDS: Mapping[int, tuple[str, str]] = {
    400: ("bad_request", "The request is not well formed. See /api/openapi.json for what this address takes."),
    404: ("not_found", "There is nothing at this address. See /api/openapi.json for what there is."),
    405: ("method_not_allowed", "This address does not take that method. See /api/openapi.json for those it takes."),
    413: ("too_large", "The body is larger than 64 KiB. Send less."),
    415: ("unsupported_media_type", "Send the body as application/json."),
}


class Problem(BaseModel):
    """RFC 9457. ``code`` is a stable word for programs; ``detail`` says what to do."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    instance: str
    code: str
    errors: list[str] | None = Field(None, description="What is wrong, field by field.")


def problem(
    request: Request,
    status: int,
    code: str,
    detail: str,
    *,
    errors: list[str] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The answer to a request that failed, in the form its sender can read."""
    headers = dict(headers or {})
    if status == 401 and is_api(request):
        headers["WWW-Authenticate"] = 'Bearer realm="pupitre"'
    title = HTTPStatus(status).phrase
    if is_api(request):
        document = Problem(
            title=title, status=status, detail=detail, instance=quote(request.url.path), code=code, errors=errors
        )
        body = document.model_dump(exclude_none=True)
        return JSONResponse(body, status, headers=headers, media_type=MEDIA_TYPE)
    retry_after = int(headers["Retry-After"]) if "Retry-After" in headers else None
    if "hx-request" in request.headers:
        if status == 401:
            return Response(status_code=status, headers={**headers, "HX-Redirect": _sign_in_path(request)})
        notice = {"detail": detail, "errors": errors, "retry_after": retry_after}
        return render(request, "_notice.html", notice, status=status, headers=headers)
    if status == 401 and request.method == "GET":
        return RedirectResponse(_sign_in_path(request), 303)
    again = _sign_in_path(request) if status == 401 else None
    context = {
        "again": again,
        "status": status,
        "title": title,
        "detail": detail,
        "errors": errors,
        "retry_after": retry_after,
    }
    return render(request, "error.html", context, status=status, headers=headers)


def _sign_in_path(request: Request) -> str:
    """The page for signing in, which leads back to where the person was."""
    return f"/signin?next={quote(here(request))}"


def is_api(request: Request) -> bool:
    return request.url.path.startswith("/api/")


def answer_to(error: PupitreError) -> tuple[int, dict[str, str]]:
    """The status of an error, and when it may be tried again."""
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    headers = {"Retry-After": str(max(1, round(error.retry_after + 0.499)))} if isinstance(error, TooEarly) else {}
    if isinstance(error, Unavailable):
        headers["Retry-After"] = "5"
    return status, headers


async def on_error(request: Request, error: Exception) -> Response:
    """Every error of our own tree."""
    assert isinstance(error, PupitreError)
    status, headers = answer_to(error)
    return problem(request, status, error.code, str(error), headers=headers)


async def on_http_error(request: Request, error: Exception) -> Response:
    """Answer to what routing and parsing refuse."""
    assert isinstance(error, HTTPException)
    code, detail = _WORDS.get(error.status_code, ("error", str(error.detail)))
    if error.status_code == 404 and not is_api(request):
        detail = "There is no such page. Your desktops are one click away."
    return problem(request, error.status_code, code, detail, headers=error.headers)


async def on_invalid(request: Request, error: Exception) -> Response:
    """Answer to what the types of a route refuse."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    if any(item["type"] == "json_invalid" for item in found):
        return problem(request, 400, "malformed_json", "The body is not valid JSON. Check it and send it again.")
    fields = [f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in found]
    detail = "Some of what was sent cannot be used. Mend what `errors` names and send it again."
    if not is_api(request):
        detail = "Some of what was entered cannot be used. Check it and send it again."
    return problem(request, 422, "invalid", detail, errors=fields)


async def on_fault(request: Request, _error: Exception) -> Response:
    """A fault of ours. Starlette logs it and passes it on to the server."""
    detail = "Something went wrong on our side and was logged. Try again; tell your administrator if it stays."
    return problem(request, 500, "internal_error", detail)


RESPONSES: dict[int | str, dict[str, object]] = {
    status: {
        "description": HTTPStatus(status).phrase,
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    for status in (400, 401, 403, 404, 405, 409, 413, 415, 422, 429, 503)
}
"""What every REST route may answer besides its success, for OpenAPI."""
