"""A deployment: the active group, what may change it when, the engine that serves it, its records.

It must not know HTTP or vLLM. `deployments` is where a request for a change arrives.
"""
