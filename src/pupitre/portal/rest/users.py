"""``/users``: for administrators."""

from fastapi import APIRouter, Request

from pupitre.clock import now_ms
from pupitre.domain.access import User
from pupitre.portal.context import new_id, portal_of
from pupitre.portal.rest.paging import After, Limit, page
from pupitre.portal.roles import UserKeeper
from pupitre.portal.shapes import Page, UserOut, UserRequest, user_out

router = APIRouter(tags=["users"])


@router.get("/users")
async def users(request: Request, _caller: UserKeeper, limit: Limit = 100, after: After = None) -> Page[UserOut]:
    """Everyone with an account, by name."""
    return page(await portal_of(request).accounts.users(), user_out, lambda user: user.name, limit, after)


@router.post("/users", status_code=201)
async def add_user(request: Request, _caller: UserKeeper, body: UserRequest) -> UserOut:
    """A new account."""
    portal = portal_of(request)
    user = User(new_id(), body.name, body.role)
    await portal.accounts.add_user(user, await portal.passwords.hash(body.password), now=now_ms())
    return user_out(user)
