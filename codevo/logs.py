"""Logs: one line an event on standard error, without secrets."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tornado.web import RequestHandler

if TYPE_CHECKING:
    from codevo.hub import Hub

access = logging.getLogger("codevo.access")

_SECRETS = (
    (re.compile(r"(?i)\b((?:bearer|token|basic)\s+)[A-Za-z0-9._~+/=-]{8,}"), r"\1***"),
    (
        re.compile(
            r"(?i)\b((?:token|code|password|secret|session|_xsrf|secret_access_key)[\"']?\s*[=:]\s*[\"']?)[^\s&;,\"']+"
        ),
        r"\1***",
    ),
    (re.compile(r"(?i)((?:set-)?cookie:\s*)[^\r\n]+"), r"\1***"),
    # the query of anything that looks like an address or a path
    (re.compile(r"(\B/[^\s?\"']*|https?://[^\s?\"']+)\?[^\s\"']*"), r"\1?***"),
    (re.compile(r"(/(?:api/)?invites?/)[A-Za-z0-9_-]{8,}"), r"\1***"),
    (re.compile(r"(mongodb(?:\+srv)?://)[^@/\s]+@"), r"\1***@"),
    (re.compile(r"eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+"), "***"),
)


def scrub(text: str) -> str:
    """``text`` without tokens, cookies, query strings, invite codes and passwords in addresses."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


class LineFormatter(logging.Formatter):
    """``time level logger message``; fields given as ``extra={"fields": {…}}`` follow as key=value."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        pairs = "".join(f" {k}={_quoted(v)}" for k, v in fields.items())
        line = f"{_time(record)} {record.levelname.lower()} {record.name} {record.getMessage()}{pairs}"
        # one event, one line: a name in a message must not forge another event
        line = scrub(line).replace("\r", "\\r").replace("\n", "\\n")
        if record.exc_info:
            line += "\n" + scrub(self.formatException(record.exc_info))
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        event = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": scrub(record.getMessage()),
            **{k: scrub(v) if isinstance(v, str) else v for k, v in getattr(record, "fields", {}).items()},
        }
        if record.exc_info:
            event["exception"] = scrub(self.formatException(record.exc_info))
        return json.dumps(event, ensure_ascii=False, default=str)


def _time(record: logging.LogRecord) -> str:
    return (
        datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r"[\s\"=]", text) or not text else text


def set_up(level: int | str = logging.INFO, *, as_json: bool = False) -> None:
    """Send everything to standard error. Replaces what was set up before."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else LineFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # these tell every connection and every retry
    for name in ("pymongo", "botocore", "aiobotocore", "asyncio", "urllib3", "tornado.access"):
        logging.getLogger(name).setLevel(logging.WARNING)


def request_logger(hub: Hub) -> Callable[[RequestHandler], None]:
    """Tornado's ``log_function``: counts requests and writes their lines, the path but never the query."""
    return lambda handler: _log_request(hub, handler)


def _log_request(hub: Hub, handler: RequestHandler) -> None:
    request = handler.request
    status = handler.get_status()
    # a WebSocket's time is how long it was open, not how long the answer took
    took = request.request_time()
    hub.metrics.observe(type(handler).__name__, request.method or "?", status, 0.0 if status == 101 else took)
    level = logging.WARNING if status >= 500 else logging.INFO
    if request.path in ("/healthz", "/readyz", "/metrics") and status < 400:
        level = logging.DEBUG
    if not access.isEnabledFor(level):
        return
    user = getattr(handler, "_user", None)
    fields = {
        "method": request.method,
        "path": request.path[:500],
        "status": status,
        "ms": round(1000 * took, 1),
        "ip": request.remote_ip,
        "user": user.name if user else "-",
        "request": getattr(handler, "request_id", ""),
    }
    access.log(level, "request", extra={"fields": fields})
