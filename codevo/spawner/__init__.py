"""Starts, finds and stops the workspaces."""
