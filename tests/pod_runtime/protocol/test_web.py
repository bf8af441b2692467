"""The base of the pods' handlers: what is an error, and what is only the end."""

from __future__ import annotations

import asyncio
import logging

import pytest
from tornado.httputil import HTTPConnection, HTTPHeaders, HTTPServerRequest, RequestStartLine
from tornado.web import Application

from pod_runtime.protocol.web import PodHandler


class _Connection(HTTPConnection):
    def set_close_callback(self, callback: object) -> None:
        pass


def test_cancellation_at_the_end_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    line = RequestStartLine("GET", "/x", "HTTP/1.1")
    headers = HTTPHeaders({"Host": "pod"})
    request = HTTPServerRequest(start_line=line, headers=headers, connection=_Connection())
    handler = PodHandler(Application(), request)
    caplog.set_level(logging.INFO)
    handler.log_exception(asyncio.CancelledError, asyncio.CancelledError(), None)
    assert not caplog.records
    error = ValueError("broken")
    handler.log_exception(ValueError, error, None)
    assert "Uncaught exception" in caplog.text
