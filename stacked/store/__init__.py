"""Adapters on disk: sources, checks, and immutable content-addressed copies.

It must not know the engine, groups or HTTP.
"""
