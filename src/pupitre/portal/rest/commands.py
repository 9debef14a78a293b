"""``/commands``: what the caller asked for and what came of it."""

from fastapi import APIRouter, Request

from pupitre.portal.commands import command_of
from pupitre.portal.context import portal_of
from pupitre.portal.identity.sessions import SignedIn
from pupitre.portal.rest.paging import After, Limit, page
from pupitre.portal.schemas import CommandOut, Page, command_out

router = APIRouter(tags=["commands"])


@router.get("/commands")
async def commands(request: Request, caller: SignedIn, limit: Limit = 100, after: After = None) -> Page[CommandOut]:
    """The caller's commands, newest first."""
    found = await portal_of(request).commands.of_user(caller.user.id, limit=limit + 1, before=after)
    return page(found, command_out, lambda command: command.id, limit, None, descending=True)


@router.get("/commands/{command}")
async def command(request: Request, caller: SignedIn, command: str) -> CommandOut:
    return command_out(await command_of(portal_of(request), caller.user, command))
