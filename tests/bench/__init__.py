"""The Python of the bench: what it computes, not what it measures."""
