"""Measurements against a real server that the benchmark itself starts, speaking HTTP alone.

They judge the product from outside; they must not reach into the service or the engine.
"""
