"""The whole server on real sockets, by clients that share no code with it."""
