"""Locks on sign-ins, as administrators see and lift them."""

from pupitre.domain.people.throttle import Tally
from pupitre.errors import NotFound
from pupitre.portal.audit import note
from pupitre.portal.context import Portal
from pupitre.portal.identity.sessions import Caller
from pupitre.portal.labels import lock_words
from pupitre.store.audit import Act


async def lift_lock(portal: Portal, caller: Caller, lock_id: str) -> Tally:
    """Count failures anew. Raises `NotFound` when there is no such lock any more."""
    lock = next((lock for lock in await portal.throttle.locks() if lock.counter.id == lock_id), None)
    if lock is None or not await portal.throttle.lift(lock):
        raise NotFound("There is no such lock any more. Locks are under GET /api/v1/locks.")
    subject, detail = lock.counter.name or lock.counter.address, lock_words(lock.counter)
    await note(portal, Act.LOCK_LIFTED, user=caller.user, origin=caller.origin, subject=subject, detail=detail)
    return lock
