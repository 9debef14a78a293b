"""``/users``: for administrators."""

from fastapi import APIRouter, Request, Response

from pupitre.portal.account_schemas import UserChange, UserOut, UserRequest, user_out
from pupitre.portal.context import portal_of
from pupitre.portal.http.roles import UserAdmin
from pupitre.portal.identity import users
from pupitre.portal.rest.paging import After, Limit, page
from pupitre.portal.schemas import Page

router = APIRouter(tags=["users"])


@router.get("/users")
async def list_users(request: Request, _caller: UserAdmin, limit: Limit = 100, after: After = None) -> Page[UserOut]:
    """Everyone with an account, by name."""
    return page(await portal_of(request).accounts.users(), user_out, lambda user: user.name, limit, after)


@router.post("/users", status_code=201)
async def add_user(request: Request, caller: UserAdmin, body: UserRequest) -> UserOut:
    """A new account."""
    portal = portal_of(request)
    return user_out(await users.add_user(portal, caller, body.name, body.role, body.password, body.display_name))


@router.patch("/users/{name}")
async def change_user(request: Request, caller: UserAdmin, name: str, body: UserChange) -> UserOut:
    """A new role, with which every sign-in and token of the user ends, or a new name to be shown."""
    return user_out(await users.change_user(portal_of(request), caller, name, body.role, body.display_name))


@router.delete("/users/{name}", status_code=204)
async def remove_user(request: Request, caller: UserAdmin, name: str) -> Response:
    """Remove the account, its sign-ins and tokens, and stop its desktops."""
    await users.remove_user(portal_of(request), caller, name)
    return Response(status_code=204)
