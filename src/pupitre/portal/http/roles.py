"""Routes that need a role say so with these types; the rule itself is in `domain.access`."""

from typing import Annotated

from fastapi import Depends

from pupitre.domain.people.access import may_manage_hosts, may_manage_users, may_read_audit
from pupitre.errors import Forbidden
from pupitre.portal.identity.sessions import Caller, SignedIn


async def _host_admin(caller: SignedIn) -> Caller:
    if not may_manage_hosts(caller.user):
        raise Forbidden("Only administrators see and change hosts. Ask yours.")
    return caller


async def _user_admin(caller: SignedIn) -> Caller:
    if not may_manage_users(caller.user):
        raise Forbidden("Only administrators see and add users. Ask yours.")
    return caller


async def _auditor(caller: SignedIn) -> Caller:
    if not may_read_audit(caller.user):
        raise Forbidden("Only administrators read the audit log. Ask yours.")
    return caller


HostAdmin = Annotated[Caller, Depends(_host_admin)]
UserAdmin = Annotated[Caller, Depends(_user_admin)]
Auditor = Annotated[Caller, Depends(_auditor)]
