"""``python -m tests.bench collab``: rooms, histories and restores beside those of others, in one run."""
