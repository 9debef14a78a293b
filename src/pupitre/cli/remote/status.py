"""``pupitre status``: what runs here and how it is. Exit code 1 when something is not as it should be."""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import typer

from pupitre import config
from pupitre.cli.output import Json, print_items, print_json
from pupitre.errors import SetupError

app = typer.Typer(add_completion=False)


@app.command()
def status(as_json: Json = False) -> None:
    """Processes of `pupitre up` on this machine, each with what it says of itself."""
    from pupitre.net.exposure import mismatches

    settings = config.load()
    record = read_record(settings.run_dir / "processes.json")
    warnings = [f"{sentence} {remedy}" for sentence, remedy in mismatches(settings)]
    with ThreadPoolExecutor() as pool:
        rows = list(pool.map(_row, record.get("processes", [])))
    running = bool(rows)
    well = running and all(row["ready"] for row in rows)
    if as_json:
        print_json(
            {"running": running, "ready": well, "url": record.get("url"), "processes": rows, "warnings": warnings}
        )
    elif running:
        print(f"{record['url']}\n")
        columns = {"name": "Process", "pid": "Pid", "state": "State", "for": "For", "restarts": "Restarts",
                   "memory": "Memory", "says": "Says"}  # fmt: skip
        print_items(rows, columns, as_json=False, none="")
    else:
        print("Pupitre does not run here. Start it: pupitre up")
    if warnings and not as_json:
        print("\n" + "\n".join(f"Warning: {warning}" for warning in warnings))
    raise typer.Exit(0 if well else 1)


def read_record(path: Path) -> dict[str, Any]:
    """Record that `up` wrote; empty when it does not run, even if it was killed and could not clean up.

    Raises `SetupError` for a damaged one.
    """
    try:
        record: dict[str, Any] = json.loads(path.read_bytes())
        return record if Path(f"/proc/{record['pid']}").exists() else {}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError) as error:
        raise SetupError(f"{path} is damaged.", "Stop Pupitre, if it runs, and start it again: pupitre up") from error


def _row(process: dict[str, Any]) -> dict[str, Any]:
    ready, says = _ask(process)
    seconds = max(0, time.time() - process["since"])
    return {
        **process,
        "ready": ready,
        "says": says,
        "for": f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min",
        "memory": _memory(process["pid"]),
    }


def _ask(process: dict[str, Any]) -> tuple[bool, str]:
    """Whether it can do its work, and its own words for it."""
    if not process["ops"]:
        return process["state"] in {"ready", "resting"}, ""
    import httpx2

    from pupitre.net.ops_client import ask

    try:
        answer = ask(Path(process["ops"]), "/readyz")
    except httpx2.TransportError as error:
        return False, f"does not answer ({error})"
    return answer.status_code == 200, answer.text.strip()


def _memory(pid: int | None) -> str:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, ValueError):
        return "–"
    return f"{pages * os.sysconf('SC_PAGE_SIZE') >> 20} MB"
