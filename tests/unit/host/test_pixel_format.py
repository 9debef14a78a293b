"""Pictures of screens are bounded, whatever a guest shows."""

import io
import os

from PIL import Image

from pupitre.domain.console_link import MAX_PICTURE
from pupitre.host.console.pixel_format import bounded


def noise(width: int, height: int) -> bytes:
    png = io.BytesIO()
    Image.frombytes("RGB", (width, height), os.urandom(width * height * 3)).save(png, "PNG")
    return png.getvalue()


def test_picture_of_noise_is_scaled_down() -> None:
    """No screen compresses worse; the picture still shows the whole of it."""
    large = noise(1600, 1000)
    assert len(large) > MAX_PICTURE
    small = bounded(large)
    assert len(small) <= MAX_PICTURE
    with Image.open(io.BytesIO(small)) as picture:
        assert picture.size == (640, 400)


def test_picture_within_bound_is_left_alone() -> None:
    picture = noise(320, 200)
    assert bounded(picture) is picture
