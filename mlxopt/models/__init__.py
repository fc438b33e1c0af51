"""Reference models with scikit-learn's conventions, and warnings that say what to distrust."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # of __init__.pyi
