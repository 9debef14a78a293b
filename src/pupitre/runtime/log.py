"""Logging for every process: one line per event, readable or JSON, secrets never."""

import logging
import sys

import structlog

from pupitre.config import Settings

SECRET_KEYS = frozenset({"password", "token", "ticket", "cookie", "authorization", "secret", "key"})


def _redact(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    for key in SECRET_KEYS & event.keys():
        event[key] = "***"
    return event


def _one_line(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Escape control characters: what people type cannot begin a line of its own, or control the terminal."""
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable() and key not in _OURS:
            event[key] = "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in value)
    return event


_OURS = frozenset({"exception", "stack"})


def set_up_logging(settings: Settings, process: str) -> None:
    """Log to standard error. ``process`` names the source in JSON; `up` prefixes text lines itself."""
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _redact,
    ]
    if settings.log_format == "json":
        structlog.contextvars.bind_contextvars(process=process)
        renderer: structlog.typing.Processor = structlog.processors.JSONRenderer()
        shared.append(structlog.processors.format_exc_info)
    else:
        shared.append(_one_line)
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            exception_formatter=structlog.dev.plain_traceback,  # the rich one prints local variables: tickets, cookies
        )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # Said by asyncio at each end of a TLS stream, whoever ended it.
    logging.getLogger("asyncio").addFilter(lambda record: "eof_received" not in record.getMessage())
    logging.getLogger("aiosqlite").setLevel(logging.INFO)
    for chatty in ("uvicorn.access", "uvicorn.error"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
