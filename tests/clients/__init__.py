"""The clients that people use, unmodified, against the demo: what `docs/clients.md` promises.

`test_clients.py` installs each client into an environment of its own below `.cache/clients`, runs
its program from `programs/` against `configs/demo.yaml` on the real engine, and looks at what the
program told. That needs a package registry and minutes, so it is left out unless asked for:

    make clients                      # or: pytest -m long tests/clients

`test_recorded.py` sends what those clients sent, as it was on the wire, and is part of every run.
"""
