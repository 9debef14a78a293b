"""Fixtures of many tests."""

import asyncio
import contextlib
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, settings
from playwright.sync_api import Browser, sync_playwright

from pupitre import config
from pupitre.images.recipes import recipe
from pupitre.images.store import ImageStore
from tests.rigs import database_servers, leaks, leftovers
from tests.rigs.database_servers import Provisioned, Servers
from tests.rigs.stack import Stack

# How long it takes to make an input says how busy this machine is, and nothing of what is tested.
settings.register_profile("busy machine", suppress_health_check=[HealthCheck.too_slow], deadline=None)
settings.load_profile("busy machine")

CHROMIUM = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        leftovers.set_mark()


COLLECTED = pytest.StashKey[frozenset[str]]()
"""Node ids of all that was collected, before marks have left any out."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What a test asks for says what it needs."""
    config.stash[COLLECTED] = frozenset(item.nodeid for item in items)
    for item in items:
        needs = set(getattr(item, "fixturenames", ()))
        if needs & {"stack", "images"}:
            item.add_marker(pytest.mark.guest)
        if "browser" in needs:
            item.add_marker(pytest.mark.browser)
        case = item.callspec.params.values() if isinstance(item, pytest.Function) and hasattr(item, "callspec") else ()
        if "each_server" in needs or any(kind in case for kind in database_servers.KINDS[1:]):
            item.add_marker(pytest.mark.server)
        if isinstance(item, pytest.Function) and starts_programs(item.module):
            item.add_marker(pytest.mark.program)


STARTING = frozenset(
    f"tests.rigs.{name}"
    for name in (
        "local_cluster",
        "process_cluster",
        "command_walk",
        "image_command",
        "hypervisor_backends",
        "qemu_guest",
    )
)
"""Test equipment that starts other programs: brokers, qemu-img, the command line."""


def starts_programs(module: ModuleType) -> bool:
    """Whether a module of tests uses `subprocess`, or equipment that does."""
    used = vars(module).values()
    return any(one is subprocess or getattr(one, "__module__", None) in STARTING for one in used)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """No process outlives the run: one that does is ended, and the run has failed."""
    if hasattr(session.config, "workerinput"):
        return
    if left := leftovers.end(os.environ[leftovers.MARK]):
        print("\nThe tests left processes behind:", *left, sep="\n  ")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session", autouse=True)
def short_ways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The links in /tmp to the folders of hosts (`pupitre.host.hypervisor.isolation`) go with the folders."""
    yield
    base = tmp_path_factory.getbasetemp()
    for link in Path("/tmp").glob(f"pupitre-{os.geteuid()}-*"):
        with contextlib.suppress(OSError):
            if link.readlink().is_relative_to(base):
                link.unlink()


@pytest.fixture(autouse=True)
def no_leak(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that leaves a task, thread, process, socket or file behind has failed."""
    if request.node.get_closest_marker("anyio"):
        request.getfixturevalue("no_task_left")  # and the event loop, which has sockets of its own
    before = leaks.look()
    yield
    if request.node.get_closest_marker("shared_site"):
        return
    if left := leaks.left_after(before):
        pytest.fail("The test left behind: " + "; ".join(left), pytrace=False)


@pytest.fixture
async def no_task_left(anyio_backend: str) -> AsyncIterator[None]:
    """The same for tasks of the test's event loop."""
    before = asyncio.all_tasks()
    yield
    if left := await leaks.tasks_left(before):
        pytest.fail("The test left behind: " + "; ".join(left), pytrace=False)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """PostgreSQL and MariaDB of this worker; each starts when a test first asks for it."""
    with database_servers.started(tmp_path_factory.mktemp("servers")) as servers:
        yield servers


@pytest.fixture(params=database_servers.KINDS)
def each_database(request: pytest.FixtureRequest, tmp_path: Path, servers: Servers) -> str:
    """The test runs on SQLite, PostgreSQL and MariaDB: `tests.rigs.databases` opens them for its folder."""
    kind: str = request.param
    servers.place(tmp_path, kind)
    return kind


@pytest.fixture(params=database_servers.KINDS[1:])
def each_server(request: pytest.FixtureRequest, tmp_path: Path, servers: Servers) -> Provisioned:
    """The same on PostgreSQL and MariaDB alone, with the server itself."""
    servers.place(tmp_path, request.param)
    return servers.get(request.param)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, images: ImageStore) -> Iterator[Stack]:
    """One running Pupitre for all tests of a worker, checked at the end for what it leaves behind."""
    stack = Stack(tmp_path_factory.mktemp("stack") / "home", viewer_port="0").start()
    yield stack
    stack.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium. Module by module: while it is open, its event loop keeps others from running."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def images() -> ImageStore:
    """This user's image store, with `tiny` in it; built once for all tests and workers."""
    store = ImageStore(config.load().images_dir)
    recipe("tiny").build(store)
    return store
