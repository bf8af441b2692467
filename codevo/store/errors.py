"""What may go wrong with the database, without the driver's names outside this package."""

from __future__ import annotations

from pymongo.errors import ConnectionFailure

#: The database cannot be reached now; a later attempt may succeed. Handlers answer 503 with Retry-After.
StoreUnavailable = ConnectionFailure


class Taken(Exception):
    """A unique value is in use already; ``field`` says which."""

    def __init__(self, field: str) -> None:
        super().__init__(f"{field} is taken")
        self.field = field
