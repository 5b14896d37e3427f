"""Faces of the compiled modules; their sources are in native/. Neighbours: native/README.md tells who owns what."""
