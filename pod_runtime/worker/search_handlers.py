"""``api/search``: a process for each search, one a person at a time, and its lines as they come."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from tornado.iostream import StreamClosedError

from pod_runtime.worker.contents import ContentsError
from pod_runtime.worker.file_handlers import FilesHandler
from pod_runtime.worker.search import DEFAULT_LIMIT, BadQuery, Query

#: Searches at a time, and seconds that one waits for its turn and may take in all.
PLACES = 3
WAIT = 10.0
LONGEST = 90.0
#: Longest line of the process: `search.MAX_PER_FILE` matches, each escaped at its worst.
_MAX_LINE = 4 * 2**20
#: Most unsaved text of open documents that is handed over, characters; of others the file is searched.
MAX_LIVE = 16 * 2**20


class Search:
    """One search from its wait for a place to its end."""

    def __init__(self) -> None:
        self.stopped: str | None = None
        self.ended = asyncio.Event()
        self._waiting: asyncio.Task[Any] | None = None
        self._process = -1

    def stop(self, words: str) -> None:
        """End it early. Any number of times, from the loop."""
        if self.stopped is None:
            self.stopped = words
            if self._waiting is not None:
                self._waiting.cancel()
            self._kill()

    def _kill(self) -> None:
        if self._process >= 0:
            # not Popen's way, which may wait for the child before asyncio does
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._process, signal.SIGKILL)

    async def wait(self, places: asyncio.Semaphore) -> None:
        """Take a place. Raises `ContentsError` 503 when none gets free, 409 when stopped meanwhile."""
        self._waiting = asyncio.current_task()
        try:
            async with asyncio.timeout(WAIT):
                await places.acquire()
        except TimeoutError as e:
            raise ContentsError(503, "Too many searches are running; try again in a moment") from e
        except asyncio.CancelledError:
            if self.stopped is None or self._waiting is None or self._waiting.uncancel():
                raise
            raise ContentsError(409, self.stopped) from None
        finally:
            self._waiting = None

    async def lines(self, workspace: str, request: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """What the process says. Killed and waited for at the end; close this iterator."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-X", "utf8", "-m", "pod_runtime.worker.search_process", workspace),
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
            limit=_MAX_LINE,
            # nothing of ours: it reads what anybody wrote
            env={"LC_ALL": "C.UTF-8"},
            cwd="/",
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            with contextlib.suppress(ProcessLookupError):
                self._process = os.pidfd_open(process.pid)
            if self.stopped is not None:
                return
            process.stdin.write(json.dumps(request).encode())
            with contextlib.suppress(ConnectionError):
                await process.stdin.drain()
            process.stdin.close()
            while (line := await process.stdout.readline()).endswith(b"\n"):
                yield json.loads(line)
        finally:
            self._kill()
            try:
                await asyncio.shield(_ended(process))
            finally:
                if self._process >= 0:
                    os.close(self._process)
                    self._process = -1


async def _ended(process: Process) -> None:
    """Wait for a killed process. Its pipe is read to the end, without which asyncio waits for ever."""
    assert process.stdout is not None
    while await process.stdout.read(64 * 1024):
        pass
    await process.wait()


class Searches:
    """The searches that run, by person."""

    def __init__(self, workspace: str) -> None:
        self.workspace = workspace
        self._running: dict[str, Search] = {}
        self._all: set[Search] = set()
        self._places = asyncio.Semaphore(PLACES)

    @contextlib.asynccontextmanager
    async def place(self, subject: str) -> AsyncIterator[Search]:
        """A place for this person's search; an older one of theirs ends. Raises `ContentsError` 503, 409."""
        older = self._running.get(subject)
        if older is not None:
            older.stop("Another search of yours began")
        search = Search()
        self._running[subject] = search
        self._all.add(search)
        try:
            await search.wait(self._places)
            try:
                yield search
            finally:
                self._places.release()
        finally:
            search.ended.set()
            self._all.discard(search)
            if self._running.get(subject) is search:
                del self._running[subject]

    async def close(self) -> None:
        """End all of them."""
        for search in list(self._all):
            search.stop("The workspace stops")
            await search.ended.wait()


class SearchHandler(FilesHandler):
    """``GET api/search?q=&case=&word=&regex=&include=&ignored=&limit=``: NDJSON, see `search_process`."""

    _search: Search | None = None

    def _query(self) -> Query:
        numbers = {name: self.get_query_argument(name, "0") for name in ("case", "word", "regex", "ignored")}
        for name, value in numbers.items():
            if value not in ("0", "1"):
                raise ContentsError(400, f"{name}: expected 0 or 1")
        limit = self.get_query_argument("limit", str(DEFAULT_LIMIT))
        if not limit.isascii() or not limit.isdecimal() or len(limit) > 9:
            raise ContentsError(400, "limit: expected a number")
        flags = {name: value == "1" for name, value in numbers.items()}
        text = self.get_query_argument("q", "", strip=False)
        include = self.get_query_argument("include", "")
        try:
            return Query(text=text, include=include, limit=int(limit), **flags)
        except BadQuery as e:
            raise ContentsError(400, str(e)) from e

    async def get(self) -> None:
        query = self._query()
        subject = self.claims.subject
        async with self.worker.searches.place(subject) as search:
            self._search = search
            self.gatekeeper.add_socket(subject, self._revoked)
            try:
                async with asyncio.timeout(LONGEST):
                    await self._answer(search, query)
            except StreamClosedError:
                return
            except TimeoutError:
                # a client that does not read, or a machine with much else to do
                self.detach().close()
            finally:
                self.gatekeeper.remove_socket(subject, self._revoked)

    async def _answer(self, search: Search, query: Query) -> None:
        request = {
            "query": dataclasses.asdict(query),
            "open": self.worker.documents.unsaved_texts(MAX_LIVE),
            "max_file": self.worker.config.max_document,
        }
        files = matches = 0
        done = False
        lines = search.lines(self.worker.searches.workspace, request)
        async with contextlib.aclosing(lines):
            async for line in lines:
                if "error" in line:
                    raise ContentsError(400, line["error"])
                if "ready" in line:
                    self.set_header("Content-Type", "application/x-ndjson; charset=UTF-8")
                    self.set_header("Cache-Control", "no-store")
                    continue
                done = "done" in line
                files += not done
                matches += 0 if done else len(line["matches"])
                self.write(json.dumps(line) + "\n")
                await self.flush()
        if not done:
            # killed: by us, or by the limits of its time and memory
            words = search.stopped or "The search took too long"
            self.set_header("Content-Type", "application/x-ndjson; charset=UTF-8")
            end = {"files": files, "matches": matches, "truncated": True, "skipped": 0, "stopped": words}
            self.write(json.dumps({"done": True, **end}) + "\n")
        await self.finish()

    def _revoked(self) -> None:
        if self._search is not None:
            self._search.stop("You are no longer allowed to see this project")

    def on_connection_close(self) -> None:
        if self._search is not None:
            self._search.stop("The client is gone")
