"""Static files: our own, and the few files of npm packages that browsers need, under their versions.

A package's address holds its version, so browsers may keep its files for ever.
"""

import json
from dataclasses import dataclass
from os import PathLike, stat_result
from pathlib import Path

from fastapi import FastAPI
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from pupitre.config import Settings
from pupitre.errors import SetupError

FOR_EVER = "public, max-age=31536000, immutable"
_FILES = {
    "htmx": ("htmx.org", "dist/htmx.min.js"),
    "sse": ("htmx-ext-sse", "dist/sse.min.js"),
    "idiomorph": ("idiomorph", "dist/idiomorph-ext.min.js"),
}
_NOVNC = "@novnc/novnc"


@dataclass(frozen=True, slots=True)
class Assets:
    """Addresses for templates."""

    htmx: str
    sse: str
    idiomorph: str
    novnc: str


class _Files(StaticFiles):
    """A folder served with one ``Cache-Control``."""

    def __init__(self, directory: Path, cache: str) -> None:
        super().__init__(directory=directory)
        self.cache = cache

    def file_response(
        self, full_path: str | PathLike[str], stat_result: stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers["Cache-Control"] = self.cache
        return response


def mount(app: FastAPI, settings: Settings) -> Assets:
    """Serve everything under ``/static``. Raises `SetupError` when a package is not there."""
    packages = settings.packages_dir
    addresses: dict[str, str] = {}
    for key, (package, name) in _FILES.items():
        path = packages / package / name
        address = f"/static/vendor/{key}-{_version(packages, package)}{path.suffix}"
        _serve_file(app, address, path)
        addresses[key] = address
    novnc = f"/static/vendor/novnc-{_version(packages, _NOVNC)}"
    for folder in ("core", "vendor"):
        app.mount(f"{novnc}/{folder}", _Files(packages / _NOVNC / folder, FOR_EVER))
    own = Path(__file__).parents[1] / "static"
    app.mount("/static", _Files(own, "no-cache"), name="static")
    return Assets(novnc=f"{novnc}/core/rfb.js", **addresses)


def _serve_file(app: FastAPI, address: str, path: Path) -> None:
    if not path.is_file():
        raise SetupError(f"{path} is missing.", "Run `npm ci` in the source tree.")

    async def file() -> FileResponse:
        return FileResponse(path, headers={"Cache-Control": FOR_EVER})

    app.add_api_route(address, file, include_in_schema=False)


def _version(packages: Path, package: str) -> str:
    try:
        return str(json.loads((packages / package / "package.json").read_text())["version"])
    except (OSError, ValueError, KeyError) as error:
        raise SetupError(
            f"The npm package {package} is not in {packages}.", "Run `npm ci` in the source tree, or set web_packages."
        ) from error
