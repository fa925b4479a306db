"""Ray Serve starts, restarts, scales and balances replicas; each is a server as everywhere else.

The switch of all replicas to a new group is not Ray's: see `stacked.fleet`. Ray is an extra, and
imported nowhere else; `placement` and `scaling` are without it.
"""
