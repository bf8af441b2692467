"""One workspace's supervisor: parents its runner and its worker, each in a sandbox, and outlives the hub.

Private to LocalSpawner. Standard library only and little of that: one such process runs per workspace, and
its memory counts (no asyncio, dataclasses, typing or subprocess here).
"""
