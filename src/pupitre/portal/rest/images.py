"""``/images``: what a desktop can be started from."""

from fastapi import APIRouter, Request

from pupitre.portal.context import REFRESHED, portal_of
from pupitre.portal.desktops import image_named
from pupitre.portal.identity.sessions import SignedIn
from pupitre.portal.rest.paging import After, Limit, page
from pupitre.portal.schemas import ImageOut, Page, image_out

router = APIRouter(tags=["images"], dependencies=[REFRESHED])


@router.get("/images")
async def images(request: Request, _caller: SignedIn, limit: Limit = 100, after: After = None) -> Page[ImageOut]:
    """Every image, ready or not, by id."""
    found = sorted(portal_of(request).status.images, key=lambda image: image.id)
    return page(found, image_out, lambda image: image.id, limit, after)


@router.get("/images/{image}")
async def image(request: Request, _caller: SignedIn, image: str) -> ImageOut:
    return image_out(image_named(portal_of(request), image))
