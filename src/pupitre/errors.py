"""Every error of Pupitre, as one tree.

::

    PupitreError
    ├── RequestError            the caller's fault; the same request fails again
    │   ├── NotFound            no such thing, or not the caller's to see
    │   ├── Invalid             malformed or out of range
    │   ├── NotSignedIn         no valid session or token
    │   ├── Forbidden           signed in, but the role may not
    │   ├── Conflict            the thing's state does not allow it
    │   ├── LimitReached        the user has all they may have
    │   ├── TooEarly            sooner than the interval; ``retry_after`` seconds
    │   ├── HostileImage        an image file that must not reach a parser
    │   ├── TicketRefused       a ticket that opens nothing (`pupitre.domain.ticket`)
    │   └── ApiError            a refusal of the portal, for the command line (`pupitre.cli.remote.client`)
    ├── CommandError            the outcome of a command that could not be carried out
    │   ├── ConnectionFault     CONNECTION_ERROR: the cluster was not reached
    │   ├── TimedOut            no outcome within the command's time-out
    │   ├── BootFailure         VM_BOOT_FAILURE
    │   ├── DestructionFault    DOMAIN_DESTRUCTION_ERROR
    │   ├── RegistrationFault   VM_SERVER_REGISTRATION_ERROR
    │   ├── UnregistrationFault VM_SERVER_UNREGISTRATION_ERROR
    │   ├── ShutdownFault       VM_SERVER_SHUTDOWN_ERROR
    │   ├── BootUpFault         VM_SERVER_BOOTUP_ERROR
    │   ├── ConfigurationFault  VM_SERVER_CONFIGURATION_CHANGE_ERROR
    │   └── Halted              the cluster was halted before there was an outcome
    ├── Unavailable             ours, and passing: try again
    │   ├── NoAnswer            the message broker or the peer does not answer
    │   ├── EndpointError       the endpoint cannot reach what it joins
    │   └── Deposed             another cluster server has taken over
    ├── HypervisorError         what libvirt or QEMU said, in one sentence
    │   ├── NoSuchDomain
    │   └── ImageFault          a disk or image that cannot be used
    ├── HostRefused             a host's answer to the gateway (`pupitre.gateway.service`)
    ├── MessageError            bytes that are no message of ours
    ├── ForbiddenTransition     a state table has no such step: a programming error
    └── SetupError              the machine lacks something; ``remedy`` says what to do

``str(error)`` is one sentence for the person who reads it. ``code`` is a stable
word for programs. HTTP status codes are chosen by the portal alone.
"""

import errno
from typing import ClassVar


class PupitreError(Exception):
    """The root. ``code`` never changes once published."""

    code: ClassVar[str] = "error"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class RequestError(PupitreError):
    code = "bad_request"


class NotFound(RequestError):
    code = "not_found"


class Invalid(RequestError):
    code = "invalid"


class NotSignedIn(RequestError):
    code = "not_signed_in"


class Forbidden(RequestError):
    code = "forbidden"


class Conflict(RequestError):
    code = "conflict"


class LimitReached(RequestError):
    code = "limit_reached"


class TooEarly(RequestError):
    """``retry_after`` is in seconds."""

    code = "too_early"

    def __init__(self, reason: str, retry_after: float) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class HostileImage(RequestError):
    code = "hostile_image"


class CommandError(PupitreError):
    code = "command_failed"


class ConnectionFault(CommandError):
    code = "CONNECTION_ERROR"


class TimedOut(CommandError):
    code = "TIMED_OUT"


class BootFailure(CommandError):
    code = "VM_BOOT_FAILURE"


class DestructionFault(CommandError):
    code = "DOMAIN_DESTRUCTION_ERROR"


class RegistrationFault(CommandError):
    code = "VM_SERVER_REGISTRATION_ERROR"


class UnregistrationFault(CommandError):
    code = "VM_SERVER_UNREGISTRATION_ERROR"


class ShutdownFault(CommandError):
    code = "VM_SERVER_SHUTDOWN_ERROR"


class BootUpFault(CommandError):
    code = "VM_SERVER_BOOTUP_ERROR"


class ConfigurationFault(CommandError):
    code = "VM_SERVER_CONFIGURATION_CHANGE_ERROR"


class Halted(CommandError):
    code = "HALTED"


class Unavailable(PupitreError):
    code = "unavailable"


class NoAnswer(Unavailable):
    code = "link_down"


class EndpointError(Unavailable):
    code = "endpoint_error"


class Deposed(Unavailable):
    code = "deposed"


class HypervisorError(PupitreError):
    code = "hypervisor_error"


class NoSuchDomain(HypervisorError):
    code = "no_such_domain"


class ImageFault(HypervisorError):
    code = "image_fault"


class MessageError(PupitreError):
    code = "message_error"


class ForbiddenTransition(PupitreError):
    code = "forbidden_transition"


class SetupError(PupitreError):
    """``remedy`` is the command or the setting that mends it."""

    code = "setup_error"

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason} {remedy}" if remedy else reason)
        self.reason = reason
        self.remedy = remedy


_REMEDIES = {
    errno.ENOSPC: "Free some space there and try again.",
    errno.EDQUOT: "Free some space there and try again.",
    errno.EACCES: "Run this as the user to whom it belongs, or use another folder.",
    errno.EPERM: "Run this as the user to whom it belongs, or use another folder.",
    errno.EROFS: "Make the file system writable, or use another folder.",
    errno.ENAMETOOLONG: "Use a shorter name.",
    errno.EMFILE: "Raise the limit of open files: ulimit -n 65536",
    errno.EIO: "Look at the system's log: the disk may be failing.",
}


def setup_error(error: OSError, remedy: str = "") -> SetupError:
    """The sentence for a file or folder that the system refuses, with the path and the remedy."""
    place = error.filename if error.filename is not None else "This machine"
    if isinstance(place, bytes):
        place = place.decode(errors="backslashreplace")
    reason = error.strerror or type(error).__name__
    return SetupError(f"{place}: {reason}.", remedy or _REMEDIES.get(error.errno or 0, ""))
