"""Measurements on this machine: throughput, serving, LIVE updates, start, each against a baseline.

Engines and servers run as processes of a benchmark's own; it must not reach into the service.
"""
