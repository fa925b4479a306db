"""Fair shares of one engine between callers and inference keys, decided without a clock or a loop.

It knows tokens, sequences and slots. It must not know vLLM, asyncio or HTTP.
"""

from stacked.fairness.flows import Capacity, Ticket
from stacked.fairness.queue import FairQueue
from stacked.fairness.shares import Share

__all__ = ["Capacity", "FairQueue", "Share", "Ticket"]
