"""What hub, runner and worker agree on: tokens, roles, configuration."""
