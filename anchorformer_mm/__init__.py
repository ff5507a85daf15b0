"""Anchor attention for small detectors, as a plugin of OpenMMLab.

Importing the package imports no library: mmengine finds the classes through
``anchorformer_mm.registry`` when a config names the scope ``anchorformer_mm``.
"""

from anchorformer_mm.version import __version__

__all__ = ['__version__']
