"""Deep equilibrium optical flow: solve, differentiate, train and explore it.

The doors: :func:`flow` of two images, :func:`build` a model, :func:`load` a shipped or saved one,
:func:`load_published` weights of RAFT and DEQ-Flow, :func:`read_image` images of your own. Solvers are in
:mod:`deqflow.solvers`. All names are listed in ``__init__.pyi``. Each is imported when it is first used, so that the
command line's help is fast.

>>> output = deqflow.flow("a.png", "b.png")
>>> output.flow  # (1, 2, H, W), in pixels
>>> output.save("flow.flo")
"""

from importlib.metadata import version

import lazy_loader

__version__ = version("deqflow")
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
