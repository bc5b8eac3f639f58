"""Loads on a server: what to send, sending it, what came of it, and how high the rate may be."""

from .plan import DEFAULT_MIX, DEFAULT_RATE, MOST_REQUESTS, Clients, LoadError, LoadPlan
from .result import STEP_STAGES, KindResult, LoadResult, summarise
from .run import measure, run_load

__all__ = [
    "DEFAULT_MIX",
    "DEFAULT_RATE",
    "MOST_REQUESTS",
    "STEP_STAGES",
    "Clients",
    "KindResult",
    "LoadError",
    "LoadPlan",
    "LoadResult",
    "measure",
    "run_load",
    "summarise",
]
