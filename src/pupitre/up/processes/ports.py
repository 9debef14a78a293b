"""Free ports on loopback for the links between our own processes.

They are taken below the range from which the kernel serves outgoing connections,
so that a child which restarts finds its port still free.
"""

import random
import socket
from collections.abc import Container

from pupitre.errors import SetupError

RANGE = range(20000, 32000)


def free_port(taken: Container[int] = ()) -> int:
    """A port that nobody listens on, that is not in ``taken``, and that nobody else is given for the next minute.

    Raises `SetupError` when there is none.
    """
    for port in random.SystemRandom().sample(RANGE, 1000):
        if port not in taken and _reserve(port):
            return port
    raise SetupError("There is no free port on 127.0.0.1.", "Stop what uses them: ss -ltnp")


def _reserve(port: int) -> bool:
    """Leave ``port`` in TIME_WAIT: a server may listen there at once, as servers set SO_REUSEADDR.

    Whoever asks without it, as this function does, is refused until the kernel's minute is over.
    """
    with socket.socket() as server:
        try:
            server.bind(("127.0.0.1", port))
        except OSError:
            return False
        # What a connection leaves behind gives way only if it had this set as well.
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.listen(1)
        with socket.create_connection(("127.0.0.1", port)):
            # The side that closes first is the one that waits.
            server.accept()[0].close()
    return True


def is_free(address: str, port: int) -> bool:
    """Whether a server could listen there."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((address, port))
        except OSError:
            return False
        return True


def check_portal_port(address: str, port: int) -> None:
    """Raises `SetupError` that names the setting."""
    if not is_free(address, port):
        raise SetupError(
            f"Something else already listens on {address}:{port}, or this machine may not.",
            f"Choose another port: PUPITRE_PORTAL_PORT={port + 1 if port < 65535 else 8080} pupitre up",
        )
