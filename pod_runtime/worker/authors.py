"""Who edited what since the last commit: names by path, gathered until a commit takes them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

#: Paths that are remembered between two commits; the edits of further ones go without names.
MAX_PATHS = 10_000
#: Names beside one path.
MAX_NAMES = 20
MAX_NAME = 200


class Taken:
    """The names that one commit carries. A name noted for a folder counts for all beneath it."""

    def __init__(self, names: Mapping[str, Iterable[str]]) -> None:
        self.names = {path: set(found) for path, found in names.items()}

    def of(self, path: str) -> tuple[str, ...]:
        """The people of one path, sorted."""
        if not self.names:
            return ()
        parts = path.split("/")
        above = ("/".join(parts[:n]) for n in range(1, len(parts) + 1))
        found = set().union(*(self.names.get(p, ()) for p in above))
        return tuple(sorted(found)[:MAX_NAMES])


class Authors:
    """See the module. Not for threads: note and take on the event loop."""

    def __init__(self) -> None:
        self._names: dict[str, set[str]] = {}

    def note(self, name: str, *paths: str) -> None:
        """``name`` changes these; call it before persistence hears of the change."""
        for path in paths:
            found = self._names.get(path)
            if found is None:
                if len(self._names) >= MAX_PATHS:
                    continue
                found = self._names[path] = set()
            if len(found) < MAX_NAMES:
                found.add(name[:MAX_NAME])

    def moved(self, old: str, new: str) -> None:
        """What was edited at ``old`` and beneath stands at ``new`` now: both change by these people."""
        for path in list(self._names):
            if path == old or path.startswith(old + "/"):
                for name in self._names[path]:
                    self.note(name, new + path[len(old) :])

    def take(self) -> Taken:
        """Everything noted so far, for the commit that begins now."""
        taken, self._names = Taken(self._names), {}
        return taken

    def give_back(self, taken: Taken) -> None:
        """That commit came to nothing: the names wait for the next."""
        for path, names in taken.names.items():
            for name in names:
                self.note(name, path)
