"""What runs beside and inside a workspace: runner, worker, supervisor, and what they share."""
