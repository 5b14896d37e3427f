"""The presence core: who is online, and who must be told. Pure code; clock and messages come in as arguments.

    sessions <- roster <- audience <- service        (X <- Y: Y may import X)

Imports nothing here, so that importing one module imports only what that needs.
"""
