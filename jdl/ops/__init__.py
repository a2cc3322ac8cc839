"""Pure functions where the plain formulation is slow."""

from jdl.ops.pooling import max_pool

__all__ = ["max_pool"]
