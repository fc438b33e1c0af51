"""Moved to `mlxopt._bounds`."""

from mlxopt._bounds import bound_vectors, check_bounds, check_inside

__all__ = ["bound_vectors", "check_bounds", "check_inside"]
