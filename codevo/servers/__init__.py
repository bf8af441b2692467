"""The servers of projects: one state each, started, watched and stopped by one manager."""

from codevo.servers.manager import ServerManager
from codevo.servers.progress import ProgressLog, ServerStatus
from codevo.servers.server import ServerEntry, ServersBusy, TooManyRunning

__all__ = [
    "ProgressLog",
    "ServerEntry",
    "ServerManager",
    "ServerStatus",
    "ServersBusy",
    "TooManyRunning",
]
