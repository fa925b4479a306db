"""The only package that imports vLLM: plan, start, load, remove, list, and vLLM's own OpenAI app.

It must not know groups' routing or any HTTP route of ours. Importing this package imports no vLLM.
"""
