"""Registration: a host joins the cluster, or comes again with another address."""

from dataclasses import replace

from pupitre.domain.command import CommandState, Fault, RegisterHost
from pupitre.domain.host import HOST_LIFE, Host, parse_mac
from pupitre.domain.report import HostReport
from pupitre.errors import RegistrationFault
from pupitre.scheduler.changes import Changes
from pupitre.scheduler.host_commands import READY


def decide(
    changes: Changes, command: str, report: HostReport | None, fault: RegistrationFault | None, now: int
) -> bool:
    """Write the host and the outcome; False when there is nothing more to do."""
    journaled = changes.command(command)
    if journaled is None or journaled.outcome is not None or not isinstance(journaled.order, RegisterHost):
        return False  # abandoned meanwhile
    order, registered = journaled.order, changes.hosts.get(journaled.order.name)
    if fault is None and registered and registered.host.edition != order.edition and registered.used_vcpus:
        fault = RegistrationFault(
            f"Desktops run on {registered.host.title}."
            " Whether it is for editing images can be changed once they have ended."
        )
    if fault or report is None:
        code, reason = RegistrationFault.code, fault.reason if fault else "The host said nothing."
        changes.finish(command, CommandState.FAILED, Fault(code, reason))
        return False
    known = registered.host if registered else None
    known = known or Host(order.name, HOST_LIFE.initial, order.address, order.port, order.edition, now)
    host = replace(
        known,
        address=order.address,
        port=order.port,
        edition=order.edition,
        mac=parse_mac(order.mac) if order.mac else known.mac,
        facts=report.facts or known.facts,
    )
    changes.put_host(host, wanted=READY, drained_by=None)
    changes.finish(command, CommandState.SUCCEEDED)
    return True
