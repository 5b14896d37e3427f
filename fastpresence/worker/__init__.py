"""One process per core: the hot edge. Started by the node as `python -m fastpresence.worker`."""
