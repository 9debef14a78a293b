"""Free ports on loopback for the links between our own processes.

They are taken below the range from which the kernel serves outgoing connections,
so that a child which restarts finds its port still free.
"""

import random
import socket

from pupitre.errors import SetupError

RANGE = range(20000, 32000)


def free_port(taken: set[int]) -> int:
    """A port that nobody listens on now and that is not in ``taken``, to which it is added."""
    chooser = random.SystemRandom()
    for _ in range(1000):
        port = chooser.choice(RANGE)
        if port not in taken and is_free("127.0.0.1", port):
            taken.add(port)
            return port
    raise SetupError("There is no free port on 127.0.0.1.", "Stop what uses them: ss -ltnp")


def is_free(address: str, port: int) -> bool:
    """Whether a server could listen there. Raises `SetupError` when the address is not this machine's."""
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
