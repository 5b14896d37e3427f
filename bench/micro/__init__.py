"""One question a file, by pytest-benchmark: python -m pytest bench/micro --benchmark-only."""
