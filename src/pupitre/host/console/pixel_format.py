"""A picture of a screen that is small enough to wait for whoever does not read it."""

import io

from PIL import Image

from pupitre.domain.console_link import MAX_PICTURE

SMALLER = (640, 400)
"""Pixels; even of noise, a PNG of so many takes less than `MAX_PICTURE`."""


def bounded(picture: bytes) -> bytes:
    """The PNG ``picture``, scaled down where it is larger than `MAX_PICTURE`. Takes some 100 ms then."""
    if len(picture) <= MAX_PICTURE:
        return picture
    smaller = io.BytesIO()
    with Image.open(io.BytesIO(picture)) as screen:
        small = screen.convert("RGB")
    small.thumbnail(SMALLER)
    small.save(smaller, "PNG")
    return smaller.getvalue()
