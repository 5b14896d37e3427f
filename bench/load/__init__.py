"""Load: a real server and the C limit side by side, driven by the same swarm.

- scenarios, crowd: the six questions
- servers: starts, pins and ends both servers; driver: one swarm process and its runs; tokens for the crowd
- report: bars, tables, the machine; procfs: what the kernel says; build: compiles the C when it is stale
"""
