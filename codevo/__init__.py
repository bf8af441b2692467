"""Codevo's hub: people, projects, routes, and the spawner of workspaces."""

__version__ = "0.1.0"
