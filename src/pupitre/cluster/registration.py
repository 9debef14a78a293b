"""Registration of a host, on the wire: it must answer under its name, from the port that was said.

Registering a host again has the same outcome, and brings its address up to date.
"""

import asyncio

from pupitre.domain.command import RegisterHost
from pupitre.errors import MessageError, NoAnswer, RegistrationFault
from pupitre.timings import HOST_DESCRIBE_LIMIT, HOST_DESCRIBE_RETRY, HOST_DESCRIBE_WAIT
from pupitre.wire.connection import BrokerConnection
from pupitre.wire.messages import Describe, Report
from pupitre.wire.subjects import Subjects


async def ask_host(
    broker: BrokerConnection, subjects: Subjects, order: RegisterHost, epoch: int
) -> tuple[Report | None, RegistrationFault | None]:
    """Description that the host gives of itself, or why it cannot be registered."""
    where = f"{order.name} ({order.address}:{order.port})"
    try:
        report = await _described(broker, subjects.orders(order.name), Describe(epoch=epoch))
    except (NoAnswer, MessageError) as error:
        why = f"{where} does not answer: {error} Is `pupitre host` running there under this name?"
        return None, RegistrationFault(why)
    if report.host != order.name:
        return None, RegistrationFault(f"{where}: it says that its name is {report.host}.")
    if report.port != order.port:
        return None, RegistrationFault(f"{where}: its console server says that it listens on port {report.port}.")
    return report, None


async def _described(broker: BrokerConnection, subject: str, request: Describe) -> Report:
    loop = asyncio.get_running_loop()
    last = loop.time() + HOST_DESCRIBE_WAIT
    while True:
        try:
            return await broker.request(subject, request, Report, timeout=HOST_DESCRIBE_LIMIT)
        except NoAnswer:
            if loop.time() > last:
                raise
        await asyncio.sleep(HOST_DESCRIBE_RETRY)
