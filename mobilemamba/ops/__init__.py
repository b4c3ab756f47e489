"""Tensor functions, each with a table of the backends that compute it."""

from mobilemamba.ops.backends import standard_operators

__all__ = ["standard_operators"]
