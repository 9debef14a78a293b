"""schemathesis over OpenAPI: whatever is sent, the answer is one that the document promises."""

from collections.abc import Iterator
from threading import Event, Thread
from typing import Any

import anyio
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from pupitre.config import Settings
from pupitre.portal.http.app import create_app
from pupitre.store.accounts import SessionKind
from tests.rigs.portal_site import open_site

CHECKS = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)


pytestmark = pytest.mark.shared_site


@pytest.fixture(scope="module")
def admin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A site in a thread of its own: its address and an administrator's token."""
    ready, stop = Event(), anyio.Event()
    found: list[tuple[str, str]] = []
    loops: list[anyio.from_thread.BlockingPortal] = []

    async def serve() -> None:
        async with open_site(tmp_path_factory.mktemp("openapi"), admin_desktops=100_000) as site:
            found.append((site.url, await site.session("admin", SessionKind.BEARER)))
            async with anyio.from_thread.BlockingPortal() as portal:
                loops.append(portal)
                ready.set()
                await stop.wait()

    thread = Thread(target=anyio.run, args=(serve,))
    thread.start()
    assert ready.wait(30)
    yield found[0]
    loops[0].call(stop.set)
    thread.join(30)
    assert not thread.is_alive()


# The stream of events has no end, and signing out would end the test.
schema = (
    schemathesis.openapi.from_dict(create_app(Settings()).openapi())
    .exclude(path="/api/v1/events")
    .exclude(path="/api/v1/sessions/current")
)


# What the document describes wrongly raises here.
OPERATIONS = [found.ok() for found in schema.get_all_operations()]  # type: ignore[union-attr]


# With names of their own: pytest-xdist runs those of one name once.
@pytest.mark.parametrize("operation", OPERATIONS, ids=[operation.label for operation in OPERATIONS])
def test_answers_are_those_of_the_document(operation: Any, admin: tuple[str, str]) -> None:
    @given(case=operation.as_strategy())
    @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
    def answer_is_promised(case: "Case[Any]") -> None:
        case.headers["Authorization"] = f"Bearer {admin[1]}"
        answer = case.call(base_url=admin[0], timeout=20, allow_redirects=False)
        case.validate_response(answer, checks=list(CHECKS))

    answer_is_promised()
