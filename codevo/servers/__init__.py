"""The servers of projects: one state each, started, watched and stopped by one manager."""

from codevo.servers.manager import ServerEntry, ServerManager, ServersBusy, TooManyRunning
from codevo.servers.progress import ProgressLog, ServerStatus

__all__ = [
    "ProgressLog",
    "ServerEntry",
    "ServerManager",
    "ServerStatus",
    "ServersBusy",
    "TooManyRunning",
]
