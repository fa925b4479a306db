"""HTTP: admission, predict, the container's verbs, errors to status, the server process.

It must not import vLLM.
"""
