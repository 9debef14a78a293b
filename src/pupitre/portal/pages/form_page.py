"""A page with a form: with what was typed, what is wrong with it, or why it could not be done."""

from typing import Any

from fastapi import Request, Response

from pupitre.portal.context import portal_of
from pupitre.portal.http.templates import render
from pupitre.portal.pages.host_forms import HostForm
from pupitre.portal.pages.link import banner
from pupitre.portal.pages.refusals import Refusal


async def form_page(
    request: Request,
    template: str,
    form: HostForm,
    board: dict[str, Any],
    *,
    errors: dict[str, str] | None = None,
    refusal: Refusal | None = None,
) -> Response:
    """``board`` is what the page shows besides its form; ``errors`` are by field."""
    context = {"form": form, "errors": errors or {}, "refusal": refusal, **board, **banner(portal_of(request))}
    status = refusal.status if refusal else 422 if errors else 200
    return render(request, template, context, status=status, headers=refusal.headers if refusal else {})
