"""The pure part of serving a group: routing snapshot and leases.

It must not know vLLM, HTTP or the disk.
"""
