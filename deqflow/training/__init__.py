"""Training with sparse fixed-point correction and inexact gradients, on one device or many (paper section 3)."""

import lazy_loader

# The names are listed in __init__.pyi. Each is imported when it is used, so that the command line's help is fast.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
