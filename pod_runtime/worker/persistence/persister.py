"""The worker's persistence: opens the log, keeps committing what changes, says how durable it is."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path

from pod_runtime.journal import reader
from pod_runtime.journal.format import now
from pod_runtime.journal.ignore import MAX_TOML, Ignore, patterns_of
from pod_runtime.journal.store import ObjectStore, StoreError
from pod_runtime.journal.writer import Fenced, LogWriter, Moved
from pod_runtime.protocol.config import WorkerConfig
from pod_runtime.worker import safefs
from pod_runtime.worker.persistence.aside import SetAside, aside_folder, set_unsaved_aside
from pod_runtime.worker.persistence.changes import Changes, Notice, Prepared, Stopped
from pod_runtime.worker.persistence.maintenance import Maintenance
from pod_runtime.worker.persistence.manifest import UNKNOWN, Delta, Manifest
from pod_runtime.worker.persistence.notices import Notices
from pod_runtime.worker.persistence.opening import Progress
from pod_runtime.worker.persistence.past import Parts, Past
from pod_runtime.worker.persistence.session import backoff as _backoff
from pod_runtime.worker.persistence.session import begin
from pod_runtime.worker.persistence.timeline import Timeline
from pod_runtime.worker.ports import Documents, DurabilityStatus

log = logging.getLogger(__name__)

#: What the worker exits with when a newer generation owns the log: it must not be started again.
EXIT_FENCED = 3
#: More touched paths than this count as "everything".
MAX_TOUCHED = 1000
#: Seconds between full looks, at least; a look that takes long is done less often.
SCAN_INTERVAL = 60.0
SCAN_SHARE = 50
FLUSH_ATTEMPTS = 3
#: A store that hangs times out only after minutes; people are told after so many seconds.
SLOW_COMMIT = 10.0


class Persister:
    """Implements `ports.Persistence`. Order of calls: `open`, `start`, …, `close`.

    ``store`` is for tests; by default it is S3 by ``config.store``. ``notice(level, message)`` is for people.
    `fenced` is set when another worker has taken over; the process then ends with `EXIT_FENCED`.
    """

    def __init__(
        self,
        config: WorkerConfig,
        root: safefs.Root,
        documents: Documents,
        store: ObjectStore | None = None,
        *,
        notice: Notice | None = None,
    ) -> None:
        self._config, self._root, self._documents = config, root, documents
        self._given = store
        self._notices = Notices(notice or (lambda level, message: None))
        self._notice = self._notices.once
        self._stack = contextlib.AsyncExitStack()
        self._spool = Path(config.state) / "persistence"
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._subscribers: list[Callable[[DurabilityStatus], None]] = []
        self._told: DurabilityStatus | None = None
        # changes are counted, never flagged: one made during an upload belongs to the next commit
        self._version = self._durable = 0
        self._paths: set[str] = set()
        self._everything = True
        self._first_touch = self._last_touch = 0.0
        self._since: dict[str, int] = {}
        self._in_flight: tuple[Prepared, int] | None = None
        self._last_error: str | None = None
        self._unsynced: OSError | None = None
        self._last_commit: str | None = None
        self._ignore = Ignore()
        self._next_scan = 0.0
        self._maintenance: Maintenance | None = None
        self.timeline: Timeline | None = None
        self.past: Past | None = None
        self.fenced = asyncio.Event()
        self._manifest: Manifest | None = None
        self._writer: LogWriter | None = None

    # -- life

    async def open(self, progress: Progress = lambda percent, message: None) -> None:
        """Bring workspace and log together and commit the ``open`` record; then serving may begin.

        ``progress(percent, words)`` is called while files are restored. Raises `Fenced`, `StoreError` when
        the store stays away for about a minute, `OSError` for a full disk.
        """
        try:
            await self._open(progress)
        except BaseException as e:
            if isinstance(e, Fenced):
                self.fenced.set()
            self._manifest = None
            await self._stack.aclose()
            raise

    async def _open(self, progress: Progress) -> None:
        session = await begin(
            self._stack,
            self._spool,
            self._config,
            self._root,
            self._documents,
            self._given,
            notice=self._notice,
            progress=progress,
        )
        self._manifest, self._writer = session.manifest, session.writer
        self.timeline, self._maintenance = session.timeline, session.maintenance
        self.past = Past(
            Parts(
                self._root,
                self._documents,
                session,
                self._notices,
                self._spool,
                self.flush,
                self.touched,
                lambda: self._ignore,
                self._config.max_document,
            )
        )
        self._version = int(self._manifest.info.get("version", "0")) + 1
        self._durable = self._version - 1  # the first look decides
        self._last_commit = now()

    def start(self) -> None:
        """Begin committing."""
        self._task = asyncio.create_task(self._run(), name="persistence")
        self._wake.set()

    async def close(self) -> None:
        """Flush a last time, then stop. Bounded by the caller."""
        if self._manifest is None:
            await self._stack.aclose()
            return
        try:
            if self.past is not None:
                await self.past.close()
            if not self.fenced.is_set():
                await self.flush()
        finally:
            self._stopping = True
            if self._task is not None:
                self._task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await self._task
            if self._maintenance is not None:
                await self._maintenance.close()
            if self._in_flight is not None:
                self._in_flight[0].discard()
            async with self._lock:
                await self._stack.aclose()
                self._manifest = None

    # -- ports.Persistence

    def touched(self, *paths: str) -> None:
        """See the port. Without paths: anything may have changed."""
        moment = asyncio.get_running_loop().time()
        if not self._paths and not self._everything:
            self._first_touch = moment
        self._last_touch = moment
        self._version += 1
        if paths and not self._everything:
            self._paths.update(paths)
            if len(self._paths) > MAX_TOUCHED:
                self._everything = True
                self._paths.clear()
        elif not paths:
            self._everything = True
            self._paths.clear()
        self._wake.set()
        self._tell()

    async def flush(self) -> DurabilityStatus:
        """See the port. Looks at every file; gives up after three attempts when the store is away."""
        await self._documents.save_all()
        self.touched()
        wanted = self._version
        failures = 0
        while self._durable < wanted and not self.fenced.is_set() and self._manifest is not None:
            try:
                await self._commit_once()
            except (StoreError, OSError):
                failures += 1
                if failures >= FLUSH_ATTEMPTS:
                    break
                await asyncio.sleep(_backoff(failures))
        # what came after the call does not count, or a busy program would never let it be answered
        pending = self._durable < wanted or self.fenced.is_set()
        return dataclasses.replace(self.status(), pending=pending)

    def status(self) -> DurabilityStatus:
        pending = self._durable != self._version or self._in_flight is not None
        return DurabilityStatus(self._version, self._durable, pending, self._last_error, self._last_commit)

    def subscribe(self, callback: Callable[[DurabilityStatus], None]) -> Callable[[], None]:
        """Call ``callback`` with each new status; gives the function that ends it."""
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    # -- the loop

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        while not self.fenced.is_set():
            await self._wait_for_work(loop)
            try:
                await self._commit_once()
                failures = 0
            except (StoreError, OSError):
                failures += 1
                await asyncio.sleep(_backoff(failures))
            except Stopped:
                return
            except Exception:
                # a bug must not end persistence silently; the error is shown, and it is tried again
                log.exception("a commit failed")
                self._failed("an internal error; see the worker's log")
                failures += 1
                await asyncio.sleep(_backoff(failures))

    async def _wait_for_work(self, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            moment = loop.time()
            if self._in_flight is not None:
                return
            if self._paths or self._everything:
                quiet = self._last_touch + self._config.flush_quiet
                due = min(quiet, self._first_touch + self._config.flush_max)
                if moment >= due:
                    return
            else:
                due = self._next_scan
                if moment >= due:
                    self._everything = True
                    return
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(due - moment):
                    await self._wake.wait()

    async def _commit_once(self) -> None:
        async with self._lock:
            if self.fenced.is_set() or self._manifest is None:
                return
            assert self._writer is not None
            if self._in_flight is None:
                await self._prepare()
            if self._in_flight is None:
                self._check_synced()
                self._tell()
                return
            prepared, version = self._in_flight
            slow = asyncio.get_running_loop().call_later(
                SLOW_COMMIT, self._failed, "The object store answers slowly, or not at all"
            )
            try:
                seq = await self._writer.append(prepared.commit)
            except Fenced as e:
                await self._fence(e.generation)
                return
            except Moved as e:
                await self._yield_to(e.seq)
                raise StoreError("another writer committed first") from e
            except StoreError as e:
                self._failed(f"The object store is away: {e}")
                raise
            finally:
                slow.cancel()
            await self._landed(prepared, version, seq)
            self._check_synced()

    def _check_synced(self) -> None:
        """Raise when what was committed last could be forgotten here by a crash."""
        if self._unsynced is not None:
            self._everything = True
            self._failed(f"The worker's own folder cannot be written: {self._unsynced.strerror}")
            raise self._unsynced

    async def _prepare(self) -> None:
        """Look and pack; leaves ``_in_flight`` or, when nothing changed, only the manifest's notes."""
        assert self._manifest is not None
        changed = {path for path in self._documents.histories() if self._everything or path in self._paths}
        stale = await asyncio.to_thread(self._stale, changed - self._documents.open_paths(), self._manifest)
        await self._documents.refresh(stale)
        version, everything = self._version, self._everything
        paths, self._paths, self._everything = self._paths, set(), False
        started = asyncio.get_running_loop().time()
        # with the captures, at one instant: an edit and its author go into the same commit
        people = self._documents.authors.take()
        try:
            histories, live = self._documents.histories(), self._documents.open_paths()
            self._since = {path: v for path, v in self._since.items() if path in histories}
            # a document that was deleted and made anew counts from nothing again: what was touched is taken
            # whatever its version, and compared by hash
            fresh = paths | live if everything else paths
            captures = self._documents.capture({p: v for p, v in self._since.items() if p not in fresh})
            self._unsynced = await self._documents.sync()
            if self._unsynced is not None:
                # it is committed all the same, for who comes after this machine, but not called durable
                version = self._durable
            if everything or "codevo.toml" in paths:
                before = self._ignore.patterns
                await asyncio.to_thread(self._read_ignore, self._notices.from_threads())
                everything = everything or before != self._ignore.patterns
            changes = Changes(
                self._root,
                self._manifest,
                self._ignore,
                spool=self._spool,
                live=live,
                max_workspace=self._config.max_workspace,
                notice=self._notices.from_threads(),
                stopped=lambda: self._stopping,
                people=people,
            )
            prepared = await asyncio.to_thread(
                changes.build, captures, histories, None if everything else paths
            )
        except BaseException as e:
            self._everything = self._everything or everything
            self._paths |= paths
            self._documents.authors.give_back(people)
            if isinstance(e, OSError):
                self._failed(f"The workspace cannot be read: {e.strerror or e}")
            raise
        if everything:
            took = asyncio.get_running_loop().time() - started
            self._next_scan = asyncio.get_running_loop().time() + max(SCAN_INTERVAL, took * SCAN_SHARE)
        if prepared.more:
            self.touched()
        if not prepared.empty:
            self._in_flight = (prepared, version)
            return
        self._since.update(prepared.versions)
        if prepared.delta.entries or prepared.delta.docs:
            await asyncio.to_thread(self._manifest.apply, prepared.delta, {})
        self._durable = max(self._durable, version)
        self._last_error = None

    def _stale(self, paths: set[str], manifest: Manifest) -> list[str]:
        """Those whose files are not as they were committed."""
        found = []
        for path in sorted(paths):
            entry = manifest.entries.get(path)
            with contextlib.suppress(OSError, ValueError):
                st = self._root.lstat(path)
                if entry is None or (entry.size, entry.mtime_ns) != (st.st_size, st.st_mtime_ns):
                    data = self._root.read_bytes(path, self._config.max_document)
                    if entry is None or entry.digest != hashlib.sha256(data).hexdigest():
                        found.append(path)
        return found

    def _read_ignore(self, notice: Notice) -> None:
        try:
            patterns = patterns_of(self._root.read_bytes("codevo.toml", MAX_TOML))
        except (FileNotFoundError, NotADirectoryError):
            patterns = ()
        except (OSError, ValueError) as e:
            # half-written or broken: what was ignored stays ignored
            notice("warning", str(e))
            return
        if patterns != self._ignore.patterns:
            self._ignore = Ignore(patterns)

    async def _landed(self, prepared: Prepared, version: int, seq: int) -> None:
        assert self._manifest is not None
        assert self._writer is not None
        self._in_flight = None
        self._since.update(prepared.versions)
        self._durable = max(self._durable, version)
        self._last_error, self._last_commit = None, now()
        info = {"seq": seq, "generation": self._writer.generation, "version": version}
        try:
            await asyncio.to_thread(self._manifest.apply, prepared.delta, info)
        except sqlite3.Error as e:
            log.warning("the manifest cannot be written: %s", e)  # the next start asks the log instead
        finally:
            prepared.discard()
        self._tell()
        assert self.timeline is not None
        assert self._maintenance is not None
        await self.timeline.committed(seq, prepared)
        self._maintenance.committed(large=prepared.large)

    async def _yield_to(self, seq: int) -> None:
        """An older generation slipped a record in: what it changed is looked at and committed again."""
        assert self._manifest is not None
        assert self._writer is not None
        single = reader.Log(None, None, None, (seq,))
        names = (await reader.plan(self._writer.store, single)).last
        paths = (n.partition("/")[2] for n in names if n.startswith("workspace/"))
        known = self._manifest.entries
        entries = {path: UNKNOWN for path in paths if path not in known or not known[path].held}
        await asyncio.to_thread(self._manifest.apply, Delta(dict(entries)), {"seq": seq, "generation": ""})
        if self._in_flight is not None:
            self._in_flight[0].discard()
            self._documents.authors.give_back(self._in_flight[0].people)
            self._in_flight = None
        self._since.clear()
        self._everything = True
        if self.timeline is not None:
            self.timeline.listing_changed()

    async def _fence(self, generation: int) -> None:
        assert self._manifest is not None
        words = "This workspace was started again elsewhere; this one has stopped saving"
        log.error("fenced by generation %d", generation)
        if self._in_flight is not None:
            self._in_flight[0].discard()
        aside = SetAside(self._root, aside_folder())
        captures, live = self._documents.capture(self._since), self._documents.open_paths()
        with contextlib.suppress(OSError):
            await asyncio.to_thread(
                set_unsaved_aside,
                aside,
                self._root,
                self._manifest,
                self._ignore,
                self._spool,
                captures,
                live,
            )
        self._in_flight = None
        if aside.count:
            words += f"; unsaved work is in {aside.folder}"
        self._notice("error", words)
        self._failed(words)
        self.fenced.set()

    # -- telling

    def _failed(self, words: str) -> None:
        self._last_error = words
        self._tell()

    def _tell(self) -> None:
        status = self.status()
        if status == self._told:
            return
        self._told = status
        for callback in list(self._subscribers):
            callback(status)
