"""Autodiff-based optimization on MLX: write a loss, get an answer that says how far to trust it."""

import lazy_loader

from mlxopt import _platform  # noqa: F401 - says what to install if MLX has no backend

__version__ = "0.1.0"

# The public names stand in __init__.pyi. Importing all their modules would take longer than MLX and
# NumPy together.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
