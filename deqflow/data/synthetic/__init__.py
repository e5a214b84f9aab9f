"""Procedural pairs and videos with exact flow and occlusion, in the manner of FlyingChairs and AutoFlow.

A scene is a stack of layers, the first of which fills the image. Each layer has a texture (a photograph, noise or plain
shading), a shape, and a motion. All frames are rendered from the layers directly, so the flow is known exactly: at each
pixel it is the motion of the topmost layer. A scene depends on its configuration, seed and index only, not on the
process that makes it.
"""

import lazy_loader

# The names are listed in __init__.pyi. Each is imported when it is used, so that the command line's help is fast.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
