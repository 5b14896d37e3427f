"""The node process: one for each machine, the cold edge. It imports nothing of `worker`."""
