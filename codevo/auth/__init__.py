"""Who may call: passwords, sessions, API tokens, and the check that every route states its need."""
