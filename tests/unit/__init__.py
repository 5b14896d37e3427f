"""A file of tests for each source file."""
