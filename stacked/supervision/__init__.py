"""Watches the engine that serves: notices its death or silence, starts it again, and gives up.

`policy` decides, `supervisor` acts. It must not know HTTP or vLLM.
"""
