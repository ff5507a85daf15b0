"""Write detectors of other projects as ONNX files, for latency.py to compare.

Needs the Python of an environment of its own, with the packages of the
detectors, and nothing of this project. Weights are random, of one seed. Each
file is of one size and batch 1, takes RGB from 0 to 255 as its only input and
ends in boxes with scores of all priors or queries; of YOLO26 there is one
more, which ends in the choice of its 300 best ones as its own exporter does.
"""

import argparse
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import partial
from importlib.metadata import version
from io import BytesIO
from pathlib import Path

import onnx
import onnxslim
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class YOLO(nn.Module):
    """A detector of ultralytics up to the decoded boxes, before any NMS.

    Args:
        name: Such as ``'yolo26n'``.
        best: End in the 300 best detections.
    """

    def __init__(self, name: str, best: bool = False) -> None:
        from ultralytics.nn.tasks import DetectionModel

        super().__init__()
        self.network = DetectionModel(f'{name}.yaml', verbose=False)
        head = self.network.model[-1]
        head.export, head.format = True, 'onnx'
        # Of the two heads that YOLO26 is trained with, the one without NMS.
        head.end2end = name.startswith('yolo26')
        self.network.eval().fuse(verbose=False)
        if not best:
            head.postprocess = lambda found: found

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (self.network(images / 255),)


class DETR(nn.Module):
    """A detector by queries, its boxes in px and its scores from 0 to 1.

    ``network`` gives a dict of ``pred_boxes`` (N, Q, 4), centres and sizes
    relative to the image, and ``pred_logits`` (N, Q, C), or the two.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outs = self.network(images / 255)
        if isinstance(outs, dict):
            outs = outs['pred_boxes'], outs['pred_logits']
        centres, sizes = (images.shape[-1] * outs[0]).split(2, dim=-1)
        boxes = torch.cat([centres - sizes / 2, centres + sizes / 2], dim=-1)
        return boxes, outs[1].sigmoid()


def dfine_n() -> nn.Module:
    from dfine import DFINE

    model = DFINE(size='n', backbone_pretrained=False, device='cpu').model
    return DETR(model.deploy())


def deimv2_n() -> nn.Module:
    from libreyolo.models.deim import ms_deform
    from libreyolo.models.deimv2.nn import LibreDEIMv2Model

    # It would export gathers in place of the faster GridSample, which the
    # other files have.
    ms_deform._grid_sample_bilinear_manual = F.grid_sample
    return DETR(LibreDEIMv2Model('n').deploy())


def rfdetr_n() -> nn.Module:
    from rfdetr import RFDETRNano
    from torchvision.transforms import Normalize

    model = RFDETRNano(pretrain_weights=None, device='cpu').model.model
    model.eval().export()
    normalise = Normalize(RFDETRNano.means, RFDETRNano.stds)
    return DETR(nn.Sequential(normalise, model))


# By name, the package, the height and width of images in px, and what builds.
PEERS: dict[str, tuple[str, int, Callable[[], nn.Module]]] = {
    'yolo26n_416': ('ultralytics', 416, partial(YOLO, 'yolo26n')),
    'yolo26n_416_best': ('ultralytics', 416, partial(YOLO, 'yolo26n', True)),
    'yolo26n_640': ('ultralytics', 640, partial(YOLO, 'yolo26n')),
    'yolo26n_640_best': ('ultralytics', 640, partial(YOLO, 'yolo26n', True)),
    'yolo11n_416': ('ultralytics', 416, partial(YOLO, 'yolo11n')),
    'dfine_n_640': ('pydfine', 640, dfine_n),
    'deimv2_n_640': ('libreyolo', 640, deimv2_n),
    'rfdetr_n_384': ('rfdetr', 384, rfdetr_n),
}


def write(build: Callable[[], nn.Module], size: int, path: Path) -> str:
    """Write a file; give its nodes and outputs in words."""
    torch.manual_seed(0)
    images, buffer = 255 * torch.rand(1, 3, size, size), BytesIO()
    with redirect_stdout(sys.stderr), torch.no_grad():
        network = build()
        shapes = [str(tuple(out.shape)) for out in network(images)]
        # Exporter and operators as of this project's own files.
        options = dict(opset_version=17, input_names=['images'], dynamo=False)
        torch.onnx.export(network, (images,), buffer, **options)
    file = onnxslim.slim(onnx.load_from_string(buffer.getvalue()))
    onnx.checker.check_model(file)
    onnx.save(file, path)
    return f'{len(file.graph.node)} nodes, outputs {" and ".join(shapes)}'


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folder', type=Path, help='for the files')
    only = 'which (default: all)'
    parser.add_argument('--peers', nargs='+', choices=PEERS, help=only)
    args = parser.parse_args(argv)
    if args.folder.exists() and not args.folder.is_dir():
        parser.error(f'{args.folder} is no folder')
    args.folder.mkdir(parents=True, exist_ok=True)
    status = 0
    for name in args.peers or PEERS:
        package, size, build = PEERS[name]
        path = args.folder / f'{name}.onnx'
        try:
            made_by = f'{package} {version(package)}'
            print(f'{path} ({made_by}): {write(build, size, path)}')
        except Exception as error:  # whatever a package may raise
            reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:300]
            advice = f'left out, pip install {package}'
            print(f'{name} {advice}: {reason}', file=sys.stderr)
            status = 1
    return status


if __name__ == '__main__':
    logging.disable(logging.WARNING)
    warnings.simplefilter('ignore')
    sys.exit(main())
