"""The tests: unit and property by source file, integration on real sockets, tidy for the house rules."""
