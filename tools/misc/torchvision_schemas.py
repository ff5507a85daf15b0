"""Let a torchvision without its compiled operators be imported.

Why: a package index may offer a CPU build of torch beside nothing but a CUDA
build of torchvision. The compiled operators of that torchvision then cannot
load, which torchvision itself tolerates until it registers shape functions
for ``torchvision::nms`` and ``torchvision::qnms``. Those two names are
unknown, and ``import torchvision`` fails with "operator torchvision::nms does
not exist", and with it the import of mmpretrain and of mmdet, which need only
the transforms written in Python.

What: ``bootstrap.py`` copies this file into the site-packages of an
environment where that import has failed, as ``_anchorformer_mm_torchvision``,
beside a ``.pth`` file that imports it when the interpreter starts. It then
waits for the first import of torchvision and declares the two operators, only
if the compiled ones have not loaded. So it costs nothing to programs that do
not use torchvision, and a torchvision that is healthy, or has become so, is
left alone. A declared operator has no implementation: calling it fails.
"""

import sys

SCHEMAS = {
    'nms': 'nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor',
    'qnms': 'qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor',
}

# torchvision imports these right after it has tried to load its operators.
REGISTERING_MODULES = (
    'torchvision._autograd_registrations',
    'torchvision._meta_registrations',
)

_fragments = []  # torch forgets the operators of a collected library


def declare_missing_operators() -> None:
    """Declare those operators of ``SCHEMAS`` that torch does not know."""
    import torch

    fragment = torch.library.Library('torchvision', 'FRAGMENT')
    _fragments.append(fragment)
    for name, schema in SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            fragment.define(schema)


class SchemaFinder:
    """Finds no module: acts once, when torchvision registers its functions."""

    def find_spec(self, name, path=None, target=None):
        if name in REGISTERING_MODULES and self in sys.meta_path:
            sys.meta_path.remove(self)
            declare_missing_operators()
        return None


if __name__ == '_anchorformer_mm_torchvision':
    sys.meta_path.insert(0, SchemaFinder())
