"""Logs: one line per event that matters, for people (console) or machines (JSON), on standard error."""

import logging
import sys
from typing import Any, Literal

import structlog

from sql.visible import printable


def configure(
    log_format: Literal["console", "json"], log_level: str, watch: structlog.typing.Processor | None = None
) -> None:
    """Send structlog's and the standard library's records through one formatter; `watch` sees those of structlog."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.ExtraAdder(),
    ]
    renderer: list[structlog.typing.Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if log_format == "json"
        else [
            _on_one_line,
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                pad_event_to=28,
                exception_formatter=structlog.dev.plain_traceback,  # the other one shows locals: passwords among them
            ),
        ]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(log_level.upper())
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    structlog.configure(
        processors=[*([watch] if watch else []), *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(log_level),
        logger_factory=structlog.stdlib.LoggerFactory(),
    )


def _on_one_line(_: Any, __: str, record: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """A library's message may quote what somebody sent; fields are quoted by the renderer."""
    record["event"] = printable(str(record["event"]))
    return record
