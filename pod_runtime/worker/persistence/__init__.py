"""Makes the workspace durable: what changed goes into the log, what the log has comes back."""

from pod_runtime.worker.persistence.persister import EXIT_FENCED, Persister

__all__ = ["EXIT_FENCED", "Persister"]
