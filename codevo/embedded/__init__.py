"""The MongoDB and S3 servers of the embedded default, as supervised child processes."""

from codevo.embedded.child import ServiceError
from codevo.embedded.services import EmbeddedServices

__all__ = ["EmbeddedServices", "ServiceError"]
