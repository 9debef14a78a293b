"""``/healthz``: for whoever shares requests out among several portals.

It says that the process answers, which every request shows anyway, and nothing else.
Readiness and figures are on the process's own socket (`pupitre.net.ops`).
"""

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse

router = APIRouter(include_in_schema=False)


@router.get("/healthz", response_class=PlainTextResponse)
async def alive() -> str:
    """The process answers."""
    return "ok"
