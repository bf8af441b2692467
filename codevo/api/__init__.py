"""REST handlers, one module a noun."""
