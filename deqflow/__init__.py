"""Deep equilibrium optical flow: solve, differentiate, train and explore it.

The doors: :func:`build` a model, :func:`load` a shipped or saved one, :func:`load_published` weights of RAFT and
DEQ-Flow, :func:`read_image` pictures of your own. Solvers are in :mod:`deqflow.solvers`.

>>> estimator = deqflow.load("deqflow-small")
>>> output = estimator(deqflow.read_image("a.png"), deqflow.read_image("b.png"))
>>> output.flow  # (1, 2, H, W), in pixels
"""

from importlib.metadata import version

import lazy_loader

__version__ = version("deqflow")
# The names are listed in __init__.pyi. Each is imported when it is used, so that the command line's help is fast.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
