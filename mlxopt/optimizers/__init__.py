"""Optimizers, one file per algorithm; `_base.py` holds the contract they keep."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # of __init__.pyi
