"""Evaluation of models and classical methods on pairs with known flow."""

import lazy_loader

# The names are listed in __init__.pyi. Each is imported when it is used, so that the command line's help is fast.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
