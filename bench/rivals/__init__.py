"""Other servers doing the same job, each set up as its own documentation advises for speed.

- known: which there are, how each is got, started and spoken to; table: all of them measured in one run
- epoll_server.c: the limit; *_server.*: the job in the words of each library
"""
