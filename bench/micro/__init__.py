"""One question a file, by pytest-benchmark; run: all of them as one scenario, `python -m bench micro`."""
