"""Relays HTTP and WebSockets to workspaces and previews."""
