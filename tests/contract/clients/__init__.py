"""Walks that clients of OCI make, as scripts that run with the real client beside this package."""
