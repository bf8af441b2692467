"""LocalSpawner's supervisor: one small process a workspace that outlives the hub. Standard library only."""
