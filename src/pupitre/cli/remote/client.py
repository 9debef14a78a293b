"""The REST API as the command line uses it.

Who one is comes from ``PUPITRE_TOKEN``; on the portal's own machine ``--as NAME`` (or
nothing at all, for the demonstration administrator) opens a session of a few minutes
straight in the database ``accounts``, which only who may read that file can do.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlencode

import httpx2

from pupitre import config
from pupitre.cli.output import print_json
from pupitre.config import Settings
from pupitre.domain.text import shown
from pupitre.errors import CommandError, Invalid, RequestError, SetupError, Unavailable
from pupitre.timings import CLI_SESSION

FINAL = {"succeeded", "failed", "timed_out", "cancelled"}
LONGEST_NAME = 255


class ApiError(RequestError):
    """Refusal by the portal, in its own words."""


class Client:
    """``get``, ``post``, ``patch`` and ``delete`` give the decoded answer. All raise `ApiError` and `Unavailable`.

    Redirects are not followed: the API has none.
    """

    def __init__(self, settings: Settings, token: str) -> None:
        self.origin = settings.origin
        self._http = httpx2.Client(
            base_url=f"{settings.origin}/api/v1",
            headers={"Authorization": f"Bearer {token}"},
            timeout=httpx2.Timeout(30.0),
        )

    def close(self) -> None:
        self._http.close()

    def get(self, path: str) -> Any:
        return self._request("GET", path)

    def post(self, path: str, body: object) -> Any:
        return self._request("POST", path, body)

    def patch(self, path: str, body: object) -> Any:
        return self._request("PATCH", path, body)

    def delete(self, path: str) -> Any:
        return self._request("DELETE", path)

    def file(self, method: str, path: str) -> bytes:
        """An answer that is no JSON."""
        return self._send(method, path, None).content

    def items(self, path: str) -> list[dict[str, Any]]:
        """Every item of a list, page after page."""
        return list(self.each(path))

    def each(self, path: str, **filters: object) -> Iterator[dict[str, Any]]:
        """The items of a list, page by page as they are asked for; filters that are None are left out."""
        query = {key: str(value) for key, value in filters.items() if value is not None}
        while True:
            page = self.get(f"{path}?{urlencode(query)}")
            yield from page["items"]
            if not page["next"]:
                return
            query["after"] = page["next"]

    @contextmanager
    def events(self) -> Iterator[Iterator[tuple[str, dict[str, Any]]]]:
        """The live events, from now on: pairs of name and data."""
        try:
            with self._http.stream("GET", "/events", timeout=httpx2.Timeout(30.0, read=None)) as response:
                self._check(response)
                yield _events(response.iter_lines())
        except httpx2.TransportError as error:
            raise self._unreachable(error) from error

    def _request(self, method: str, path: str, body: object = None) -> Any:
        response = self._send(method, path, body)
        return response.json() if response.content else None

    def _send(self, method: str, path: str, body: object) -> httpx2.Response:
        try:
            response = self._http.request(method, path, json=body)
        except httpx2.TransportError as error:
            raise self._unreachable(error) from error
        self._check(response)
        return response

    def _check(self, response: httpx2.Response) -> None:
        if response.status_code < 300:
            return
        response.read()
        try:
            problem = response.json()
            said = str(problem.get("detail") or problem["title"])
        except (ValueError, KeyError, AttributeError):
            said = f"The portal answered {response.status_code}."
        raise ApiError(said)

    def _unreachable(self, error: Exception) -> Unavailable:
        return Unavailable(f"The portal at {self.origin} cannot be reached ({error}). Start it: pupitre up")


def _events(lines: Iterator[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Server-sent events (WHATWG HTML, 9.2) whose data is JSON."""
    name, data = "message", ""
    for line in lines:
        key, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                yield name, json.loads(data)
            name, data = "message", ""
        elif key == "event":
            name = value
        elif key == "data":
            data += value


@contextmanager
def connect(who: str | None, *, lasting: bool = False) -> Iterator[Client]:
    """A client for the portal of this home. Raises `SetupError` when nobody can be found to act as.

    ``lasting`` is for what outlives the command, as a console does: it is cut when the sign-in ends that opened it.
    """
    settings = config.load()
    token = os.environ.get("PUPITRE_TOKEN")
    close = None
    if who is not None or not token:
        token, close = _local_session(settings, who, lasting=lasting)
    client = Client(settings, token)
    try:
        yield client
    finally:
        client.close()
        if close:
            close()


def _local_session(settings: Settings, who: str | None, *, lasting: bool) -> tuple[str, Any]:
    """A token for ``who``, and what ends it again; one that lasts ends by itself."""
    from pupitre.cli.local.accounts import close_session, open_session
    from pupitre.store.audit import Act
    from pupitre.up.demo_accounts import read_accounts

    if who is None:
        who = next((entry["name"] for entry in read_accounts(settings) if entry["role"] == "admin"), None)
    if who is None:
        raise SetupError("Nobody is signed in.", "Set PUPITRE_TOKEN (pupitre user token NAME), or add --as NAME.")
    seconds = settings.session_hours * 3600 if lasting else CLI_SESSION
    token = asyncio.run(open_session(settings, who, seconds, Act.SIGN_IN))
    return token, None if lasting else lambda: asyncio.run(close_session(settings, token))


def path_of(*parts: str) -> str:
    """The path of a thing in the API from what a person typed. Raises `Invalid` for what can name nothing."""
    for part in parts:
        if part in {"", ".", ".."} or len(part) > LONGEST_NAME:
            raise Invalid(f"{part[:20]!r} names nothing: a name or an id has 1 to {LONGEST_NAME} characters.")
    return "".join(f"/{quote(part, safe='')}" for part in parts)


def wait_for_outcome(client: Client, command_id: str, *, quiet: bool) -> dict[str, Any]:
    """The command once it has ended; live events tell each step. Raises `CommandError` when it did not succeed."""
    steps = _Steps(quiet)
    with client.events() as events:
        # Asked after the stream is open: whatever happens later is in the stream.
        command = client.get(path_of("commands", command_id))
        steps.tell(command["state"])
        host = command["kind"].endswith("_host") and command["subject"]
        while command["state"] not in FINAL:
            name, data = next(events)
            if name == "resync" or (name == "command" and data["id"] == command_id):
                command = client.get(path_of("commands", command_id))
                steps.tell(command["state"])
            elif name == "host" and data["name"] == host:
                steps.tell(_host_step(data))
            elif name == "desktop" and data["id"] == command["desktop"]:
                steps.tell(f"desktop {data['state']}")
    if command["state"] != "succeeded":
        error = command.get("error") or {}
        raise CommandError(str(error.get("reason") or f"The command {command_id} is {command['state']}."))
    return dict(command)


def order(method: str, path: str, body: object, said: str, *, who: str | None, no_wait: bool, as_json: bool) -> None:
    """Ask for something that is a command, and tell each step until its outcome; ``said`` when that is success."""
    with connect(who) as client:
        asked = client.patch(path, body) if method == "PATCH" else client.post(path, body)
        if no_wait:
            said = f"Asked for: command {asked['command']}."
        else:
            asked = wait_for_outcome(client, asked["command"], quiet=as_json)
    if as_json:
        print_json(asked)
    else:
        print(said)


def _host_step(host: dict[str, Any]) -> str:
    desktops = {0: "", 1: ", 1 desktop on it"}.get(host["desktops"], f", {host['desktops']} desktops on it")
    reason = f": {host['reason']}" if host["reason"] else ""
    return f"host {host['state']}{desktops}{reason}"


class _Steps:
    """Each new step once, with the seconds since the first."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._begun = time.monotonic()
        self._last = ""

    def tell(self, step: str) -> None:
        if step != self._last and not self._quiet:
            print(f"  {time.monotonic() - self._begun:6.1f} s  {shown(step)}", file=sys.stderr, flush=True)
        self._last = step
