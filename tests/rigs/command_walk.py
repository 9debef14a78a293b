"""Every command of ``pupitre`` run with many arguments and homes, quickly: one interpreter, forked for each case.

As a script it reads cases (JSON) from standard input and writes one outcome for each to standard output. It must be
started without the capability to read what file modes forbid, else root would find no home unreadable: see `walk`.
"""

import json
import os
import pkgutil
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

CASE_LIMIT = 30
"""Seconds that one command may take before it is killed, which is an outcome of its own."""

PROCESSES = {"up", "web", "portal", "gateway", "endpoint", "cluster", "host"}
"""Commands that serve until a signal: they are walked only where they cannot start."""


@dataclass(frozen=True)
class Case:
    """``arguments`` may hold bytes that are not UTF-8, as surrogates. ``given`` is standard input, likewise."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    given: str = ""


@dataclass(frozen=True)
class Ended:
    """``code`` is negative for a signal."""

    code: int
    output: str


@dataclass(frozen=True)
class Leaf:
    """A command that does something, with its required arguments and the options that take a value."""

    path: tuple[str, ...]
    arguments: tuple[str, ...]
    options: tuple[str, ...]


def leaves() -> list[Leaf]:
    """Every command, from the tables of the command line itself."""
    from typer.main import get_command

    from pupitre.cli.root import app

    return list(_below(get_command(app), ()))


def _below(command: Any, path: tuple[str, ...]) -> Iterator[Leaf]:
    if hasattr(command, "list_commands"):
        if path and path[0] in PROCESSES:
            yield Leaf(path, (), ())
        for name in command.list_commands(None):
            yield from _below(command.get_command(None, name), (*path, name))
        return
    arguments = tuple(p.name for p in command.params if p.required and p.name == p.opts[0])
    options = tuple(
        p.opts[0] for p in command.params if p.opts[0].startswith("--") and not getattr(p, "is_flag", False)
    )
    yield Leaf(path, arguments, tuple(option for option in options if option != "--help"))


def walk(cases: Sequence[Case], environment: Mapping[str, str]) -> list[Ended]:
    """Outcomes of the cases, in their order; each case adds its environment to the common one."""
    command = [sys.executable, "-m", "tests.rigs.command_walk"]
    if os.geteuid() == 0:
        command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--", *command]
    given = json.dumps([asdict(case) for case in cases])
    done = subprocess.run(command, input=given, capture_output=True, text=True, env=dict(environment), check=False)
    assert done.returncode == 0, done.stderr
    return [Ended(**ended) for ended in json.loads(done.stdout)]


def _main() -> None:
    import pupitre

    cases = [Case(tuple(case["arguments"]), case["environment"], case["given"]) for case in json.load(sys.stdin)]
    for module in pkgutil.walk_packages(pupitre.__path__, "pupitre."):
        if not re.search(r"__main__|migrations|libvirt", module.name):
            __import__(module.name)
    outcomes = [_run(case) for case in cases]
    json.dump([asdict(ended) for ended in outcomes], sys.stdout)


def _run(case: Case) -> Ended:
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as given:
        given.write(os.fsencode(case.given))
        given.seek(0)
        child = os.fork()
        if not child:
            _become(case, given.fileno(), output.fileno())
        _, status = os.waitpid(child, 0)
        output.seek(0)
        return Ended(os.waitstatus_to_exitcode(status), output.read().decode(errors="backslashreplace"))


def _become(case: Case, given: int, output: int) -> None:
    """The command itself, in a process group of its own that ends with it."""
    from pupitre.cli import main

    os.setpgid(0, 0)
    signal.alarm(CASE_LIMIT)
    for number, stream in ((given, 0), (output, 1), (output, 2)):
        os.dup2(number, stream)
    # As the interpreter decodes them when it starts in the locale C.UTF-8.
    sys.stdin = open(0, errors="surrogateescape", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", errors="surrogateescape", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.environ.update(case.environment)
    sys.argv = ["pupitre", *case.arguments]
    code = 1
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:  # noqa: BLE001
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def damaged_homes(folder: Path) -> dict[str, dict[str, str]]:
    """Environments whose home cannot be used, each in its own way."""
    made = {name: folder / name for name in ("closed", "broken-settings", "unknown-setting", "not-utf8",
            "settings-folder", "damaged-files", "empty")}  # fmt: skip
    for path in made.values():
        path.mkdir()
    (made["broken-settings"] / "pupitre.toml").write_text("portal_port = [\n")
    (made["unknown-setting"] / "pupitre.toml").write_text("portl_port = 9000\n")
    (made["not-utf8"] / "pupitre.toml").write_bytes(b"host_name = '\xff\xfe'\n")
    (made["settings-folder"] / "pupitre.toml").mkdir()
    _damage(made["damaged-files"])
    file = folder / "file"
    file.write_text("This is no folder.\n")
    homes = {**made, "a-file": file, "below-a-file": file / "home", "missing": folder / "missing" / "home"}
    made["closed"].chmod(0)
    homes["someone-elses"] = _someone_elses(folder)
    return {name: {"PUPITRE_HOME": str(path)} for name, path in homes.items()}


def _someone_elses(folder: Path) -> Path:
    """A folder of another user that may be read and not written."""
    if os.geteuid() != 0:
        return Path("/usr/share/doc")
    home = folder / "someone-elses"
    home.mkdir(mode=0o755)
    os.chown(home, 65534, 65534)
    return home


def _damage(home: Path) -> None:
    """Each file that a home may have, with nothing sensible in it."""
    for name in ("accounts", "commands", "status", "cluster"):
        _write(home / "db" / f"{name}.sqlite", b"This is no database. " * 100)
    for name in ("accounts.json", "run/processes.json", "images/tiny/manifest.json", "images/x.json"):
        _write(home / name, b"{not JSON \xff")
    for role in ("ca", "nats", "cluster", "endpoint", "gateway", "portal", "host-host-1"):
        _write(home / "pki" / role / f"{role}.crt", b"no certificate")
        _write(home / "pki" / role / f"{role}.key", b"no key")
        _write(home / "pki" / role / "ca.crt", b"no certificate")


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


if __name__ == "__main__":
    _main()
