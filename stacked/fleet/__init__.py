"""Several servers that serve one group: a LIVE update goes to all of them, or to none.

The protocol is here, apart from clocks, sockets and engines: `shared` is what the replicas have in
common, `replica` what each of them does about it.
"""
