"""``/locks``: sign-ins that are refused after too many wrong passwords. For administrators."""

from fastapi import APIRouter, Request, Response

from pupitre.portal.account_schemas import LockOut, lock_out
from pupitre.portal.context import portal_of
from pupitre.portal.http.roles import UserAdmin
from pupitre.portal.identity.locks import lift_lock
from pupitre.portal.rest.paging import After, Limit, page
from pupitre.portal.schemas import Page

router = APIRouter(tags=["locks"])


@router.get("/locks")
async def list_locks(request: Request, _caller: UserAdmin, limit: Limit = 100, after: After = None) -> Page[LockOut]:
    """Every lock that holds now."""
    locks = sorted(await portal_of(request).throttle.locks(), key=lambda lock: lock.counter.id)
    return page(locks, lock_out, lambda lock: lock.counter.id, limit, after)


@router.delete("/locks/{lock}", status_code=204)
async def lift(request: Request, caller: UserAdmin, lock: str) -> Response:
    """Lift a lock: failures are counted anew."""
    await lift_lock(portal_of(request), caller, lock)
    return Response(status_code=204)
