"""``/status``: whether the cluster is reached. ``/cluster``: what administrators do to all of it."""

from fastapi import APIRouter, Request, Response

from pupitre.portal import hosts
from pupitre.portal.context import REFRESHED, portal_of
from pupitre.portal.http.roles import HostAdmin
from pupitre.portal.identity.sessions import SignedIn
from pupitre.portal.live.freshness import cluster_freshness
from pupitre.portal.rest.hosts import accepted
from pupitre.portal.schemas import Accepted, HaltRequest, StatusOut, status_out

router = APIRouter(tags=["cluster"], dependencies=[REFRESHED])


@router.get("/status")
async def status(request: Request, _caller: SignedIn) -> StatusOut:
    """Whether the cluster is reached, and how old what it said is."""
    return status_out(cluster_freshness(portal_of(request)))


@router.post("/cluster/halt", status_code=202)
async def halt(request: Request, response: Response, caller: HostAdmin, body: HaltRequest) -> Accepted:
    """Stop endpoint and cluster, and the hosts too if asked. Commands without an outcome are cancelled."""
    return accepted(response, await hosts.halt(portal_of(request), caller, hosts=body.hosts))
