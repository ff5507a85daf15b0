"""PicoDet weights of exported models, ONNX files and Paddle's own.

The names in such files are of no use: they are those of Paddle's program, or
numbers that a simplifier gave. A weight is known by the place of its
convolution in the graph. Batch norms are often folded into convolutions;
:func:`convert_onnx` undoes that.
"""

import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from anchorformer_mm.conversion.paddle import PARTS, PaddleKey
from anchorformer_mm.conversion.paddle_program import read_program
from anchorformer_mm.deployment.export import OPSET, relative_difference
from anchorformer_mm.deployment.networks import make_traceable
from anchorformer_mm.deployment.onnx_model import open_session, read_onnx
from anchorformer_mm.models.backbones import AnchorESNet, ESNet
from anchorformer_mm.models.dense_heads import PicoHead
from anchorformer_mm.utils.errors import UsageError

TOLERANCE = 1e-3
# Operators whose inputs are all data; of others the first is.
_JOINING = ('Add', 'Concat', 'Div', 'Mul', 'Sub', 'Sum')
_ROLES = ('weight', 'bias', 'running_mean', 'running_var')


@torch.no_grad()
def convert_onnx(
    path: str | Path, model: nn.Module, images: Sequence[Tensor] = ()
) -> tuple[dict[str, Tensor], list[PaddleKey], str]:
    """Bring the weights of a PicoDet in an ONNX file under our names.

    Convolutions of the file and of the model are matched by what they depend
    on and what depends on them; of those that are equal in this, such as the
    two predictors of a level, by their order. Then both must compute the same
    from the same pixels.

    A batch norm that was folded into a convolution is made anew with images:
    the mean and the variance of the convolution's outputs become the running
    ones of the norm, whose weight and bias undo both. Without images the norm
    is neutral. The model then evaluates the same, but the first step of a
    training destroys it.

    Args:
        path: ONNX file of a whole PicoDet, or the ``.pdiparams`` file of a
            Paddle inference model; what follows its last convolutions does
            not matter.
        model: Our detector; it is not changed. With an AnchorESNet the file
            is that of an ESNet, whose last blocks are left.
        images: As the model is given them, each (1, 3, H, W).

    Returns:
        tuple: Weights by our names, without those of the classes if the file
        has other classes; what became of every array; and the origin of the
        batch norms: ``'file'``, ``'images'`` or ``'neutral'``.

    Raises:
        UsageError: The file cannot be read, is of another model, or computes
            something else than the model with its weights.
    """
    source = _original_of(model)
    file = _simplified(path)
    arrays = {
        t.name: torch.tensor(numpy_helper.to_array(t))
        for t in file.graph.initializer
    }
    goals, ends, folded = {}, {}, []
    for ours, theirs in _matched(path, _traced(source), file):
        name, keys = ours.weight.removesuffix('.weight'), theirs.node.input[1:]
        conv, norm = source.get_submodule(name), None
        weight, *bias = (arrays[key] for key in keys)
        if '.conv_cls.' in name:
            # The file may have other classes.
            conv.weight.data = torch.empty(len(weight), *conv.weight.shape[1:])
            conv.bias.data = torch.empty(len(weight))
        if conv.weight.shape != weight.shape:
            raise UsageError(
                f'{path}: the weights of {theirs.node.name} have shape '
                f'{tuple(weight.shape)}, but {name} of the config has '
                f'{tuple(conv.weight.shape)}'
            )
        conv.weight.copy_(weight)
        bias = bias[0] if bias else torch.zeros(len(weight))
        goals |= zip(keys, [f'{name}.weight', f'{name}.bias'], strict=False)
        if ours.norm is None:
            conv.bias.copy_(bias)
        else:
            name = ours.norm.input[1].removesuffix('.weight')
            norm = source.get_submodule(name)
            one = torch.ones(len(weight))
            values = [one, bias, 0 * one, one - norm.eps]
            if theirs.norm is None:
                folded.append((conv, norm))
                goals |= zip(keys[1:], [f'{name}.bias'], strict=False)
            else:
                keys = theirs.norm.input[1:]
                values = [arrays[key] for key in keys]
                values[2] = values[2] - bias
                (epsilon,) = (
                    a.f for a in theirs.norm.attribute if a.name == 'epsilon'
                )
                values[3] = values[3] + epsilon - norm.eps
                roles = [f'{name}.{role}' for role in _ROLES]
                goals |= zip(keys, roles, strict=True)
            for role, value in zip(_ROLES, values, strict=True):
                getattr(norm, role).copy_(value)
        if not ours.followers:
            ends[theirs.output] = norm or conv
    _compare(path, file, source, ends)
    if folded and images:
        _unfold(source, folded, images)
    norms = ('images' if images else 'neutral') if folded else 'file'
    return *_by_names_of(model, source.state_dict(), goals, arrays), norms


def _original_of(model: nn.Module) -> nn.Module:
    """Make the detector that a file is of: with ESNet, and v1's predictor."""
    source = deepcopy(model).cpu().eval()
    backbone, head = source.backbone, source.bbox_head
    if isinstance(backbone, AnchorESNet):
        backbone.stages[2] = ESNet.build_stage(backbone, 2).eval()
    if isinstance(head, PicoHead):
        # The original has one for both.
        for i, (a, b) in enumerate(
            zip(head.conv_cls, head.conv_reg, strict=True)
        ):
            channels = a.out_channels + b.out_channels
            head.conv_cls[i] = nn.Conv2d(a.in_channels, channels, 1)
            head.conv_reg[i] = nn.Identity()
    return source


def _traced(model: nn.Module) -> onnx.ModelProto:
    """Graph of a model, with the names of its weights, and nothing folded."""
    model = deepcopy(model)
    make_traceable(model, dynamic=False)
    file = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # on sizes that are fixed
        torch.onnx.export(
            model,
            (torch.zeros(1, 3, 64, 64),),
            file,
            opset_version=OPSET,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            dynamo=False,
        )
    return onnx.load_model_from_string(file.getvalue())


def _simplified(path: str | Path) -> onnx.ModelProto:
    """Read a file, with all constants and biases where they are expected."""
    is_paddle = Path(path).suffix == '.pdiparams'
    model = (read_program if is_paddle else read_onnx)(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    basic = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.graph_optimization_level = basic
    with TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / 'basic.onnx')
        try:
            onnxruntime.InferenceSession(
                model.SerializeToString(),
                options,
                providers=['CPUExecutionProvider'],
                disabled_optimizers=['ConvBNFusion'],
            )
        except Exception as error:  # its errors have no common class
            reason = str(error).splitlines()[0]
            raise UsageError(f'{path} is no usable model: {reason}') from error
        simple = onnx.load(options.optimized_model_filepath)
    # In the order of the file, which the session has changed.
    position = {
        name: i
        for i, node in enumerate(model.graph.node)
        for name in node.output
    }
    nodes = sorted(
        simple.graph.node, key=lambda node: position.get(node.output[0], -1)
    )
    del simple.graph.node[:]
    simple.graph.node.extend(nodes)
    return simple


@dataclass
class _Convolution:
    """A convolution in a graph, its norm, and its neighbours by number."""

    node: onnx.NodeProto
    sources: frozenset[int]
    followers: list[int]
    norm: onnx.NodeProto | None = None

    @property
    def weight(self) -> str:
        return self.node.input[1]

    @property
    def output(self) -> str:
        return (self.norm or self.node).output[0]

    @property
    def kind(self) -> tuple:
        """What does not depend on the width of the model."""
        values = {a.name: tuple(a.ints) or a.i for a in self.node.attribute}
        return (
            *values['kernel_shape'],
            *values.get('strides', (1, 1)),
            values.get('group', 1) > 1,
        )


def _convolutions(graph: onnx.GraphProto) -> list[_Convolution]:
    found = []
    origins = defaultdict(frozenset)  # of a tensor, the last convolutions
    for node in graph.node:
        if node.op_type == 'Conv':
            sources = origins[node.input[0]]
            for i in sources:
                found[i].followers.append(len(found))
            origins[node.output[0]] = frozenset([len(found)])
            found.append(_Convolution(node, sources, []))
            continue
        data = node.input if node.op_type in _JOINING else node.input[:1]
        origin = frozenset().union(*(origins[name] for name in data))
        origins.update(dict.fromkeys(node.output, origin))
        if node.op_type == 'BatchNormalization' and len(origin) == 1:
            convolution = found[next(iter(origin))]
            if convolution.node.output[0] == node.input[0]:
                convolution.norm = node
    return found


def _matched(
    path: str | Path, ours: onnx.ModelProto, theirs: onnx.ModelProto
) -> list[tuple[_Convolution, _Convolution]]:
    """Pairs of convolutions with the same place in their graphs."""
    graphs = [_convolutions(model.graph) for model in (ours, theirs)]
    colours = [[hash(c.kind) for c in graph] for graph in graphs]
    # Refined until no more places are told apart (Weisfeiler and Leman).
    count, before = len(set(sum(colours, []))), 0
    while count > before:
        colours = [
            [
                hash(
                    (
                        colour,
                        *sorted(mine[i] for i in c.sources),
                        None,
                        *sorted(mine[i] for i in c.followers),
                    )
                )
                for colour, c in zip(mine, graph, strict=True)
            ]
            for mine, graph in zip(colours, graphs, strict=True)
        ]
        count, before = len(set(sum(colours, []))), count
    if sorted(colours[0]) != sorted(colours[1]):
        raise UsageError(
            f'{path} is another network than the model of the config: '
            f'{len(graphs[1])} convolutions, or otherwise connected, instead '
            f'of {len(graphs[0])}; a PicoDet v1 or v2 of the same '
            'stacked_convs is expected'
        )
    ordered = [
        sorted(zip(mine, range(len(mine)), strict=True)) for mine in colours
    ]
    indices = [[i for _, i in mine] for mine in ordered]
    return [
        (graphs[0][i], graphs[1][j])
        for j, i in sorted(zip(*reversed(indices), strict=True))
    ]


def _compare(
    path: str | Path,
    file: onnx.ModelProto,
    model: nn.Module,
    ends: Mapping[str, nn.Module],
) -> None:
    """Raise unless a model computes the tensors of a file at its ends."""
    file.graph.output.extend(onnx.ValueInfoProto(name=n) for n in ends)
    with TemporaryDirectory() as folder:
        with_ends = Path(folder) / 'with_ends.onnx'
        onnx.save(file, with_ends)
        session = open_session(with_ends)
    feed = {}
    generator = np.random.default_rng(0)
    for port in session.get_inputs():
        shape = [d if isinstance(d, int) and d > 0 else 1 for d in port.shape]
        if len(shape) == 4:
            free = [416 if d == 1 else d for d in shape[2:]]
            noise = generator.normal(size=(*shape[:2], *free))
            feed[port.name] = noise.astype(np.float32)
            images = torch.from_numpy(feed[port.name])
        else:
            feed[port.name] = np.ones(shape, np.float32)
    found = {}
    hooks = [
        end.register_forward_hook(
            lambda module, args, output, name=name: found.update(
                {name: output}
            )
        )
        for name, end in ends.items()
    ]
    model(images)
    for hook in hooks:
        hook.remove()
    for name, array in zip(ends, session.run(list(ends), feed), strict=True):
        difference = relative_difference(found[name].numpy(), array)
        if not difference <= TOLERANCE:
            raise UsageError(
                f'{path}: the model of the config computes something else '
                f'with these weights: relative difference {difference:.1e}, '
                f'allowed {TOLERANCE:.0e}'
            )


def _unfold(
    model: nn.Module,
    pairs: Sequence[tuple[nn.Conv2d, nn.Module]],
    images: Sequence[Tensor],
) -> None:
    """Give neutral norms the statistics of their inputs, and undo them.

    Weights of a channel below the norm that Kaiming's initialisation has are
    scaled up to it, which the batch norm takes back: a step of a training
    turns small weights by more, and those of a folded file can be tiny.
    """
    norms = [norm for _, norm in pairs]
    sums = {norm: torch.zeros(3, norm.num_features).double() for norm in norms}

    def add(norm: nn.Module, args: tuple) -> None:
        x = args[0].double().transpose(0, 1).flatten(1)
        count = torch.full((len(x),), x.shape[1])
        sums[norm] += torch.stack([count, x.sum(1), x.square().sum(1)])

    hooks = [norm.register_forward_pre_hook(add) for norm in norms]
    for image in images:
        model(image)
    for hook in hooks:
        hook.remove()
    for conv, norm in pairs:
        count, total, squares = sums[norm]
        mean = total / count
        variance = (squares / count - mean**2).clamp(min=0)
        size = conv.weight.double().flatten(1).norm(dim=1)
        factor = (2**0.5 / size.clamp(min=1e-6)).clamp(min=1)
        conv.weight.mul_(factor[:, None, None, None])
        norm.running_mean.copy_(factor * mean)
        norm.running_var.copy_(factor**2 * variance)
        norm.weight.copy_((factor**2 * variance + norm.eps).sqrt() / factor)
        norm.bias.copy_(norm.bias + mean)


def _by_names_of(
    model: nn.Module,
    state: dict[str, Tensor],
    goals: Mapping[str, str],
    arrays: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], list[PaddleKey]]:
    """Weights of the original that fit a model, and the table of all."""
    target = model.state_dict()
    pieces = {name: {name: value} for name, value in state.items()}
    if isinstance(model.bbox_head, PicoHead):
        rows = -4 * (model.bbox_head.reg_max + 1)
        for name in pieces:
            if '.conv_cls.' in name:
                value, second = state[name], name.replace('cls', 'reg')
                pieces[name] = {name: value[:rows], second: value[rows:]}
    fit = {
        name: value
        for piece in pieces.values()
        for name, value in piece.items()
        if name in target and target[name].shape == value.shape
    }
    keys = []
    for key, goal in goals.items():
        part = next(p for p, n in PARTS.items() if goal.startswith(f'{n}.'))
        targets = tuple(name for name in pieces[goal] if name in fit)
        note = ''
        if len(targets) < len(pieces[goal]):
            other = 'classes' if '.conv_cls.' in goal else 'layers'
            note = f'other {other} in our model'
        shape = tuple(arrays[key].shape)
        size = sum(fit[name].numel() for name in targets)
        keys.append(PaddleKey(part, key, shape, targets, note, size))
    return {name: fit[name] for name in target if name in fit}, keys
