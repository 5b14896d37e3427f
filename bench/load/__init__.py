"""Load: a real server and its neighbour side by side, driven by the same swarm.

- scenarios, crowd, life, edge, secure, watch, scale: the questions; setting: what each of them is given
- pairs: runs kept, counted and told in pairs; driver: one swarm process and its runs; swarm.c and others: the swarm
- servers: starts, pins and ends the real server and the C limit; populated: a real worker with users in it; tokens
- sampler, procfs: what the kernel says; build: compiles the C when it is stale
"""
