"""PaddleDetection's names of PicoDet's weights, and ours.

The names follow its ``esnet.py``, ``lcnet.py``, ``csp_pan.py``, ``lc_pan.py``,
``pico_head.py`` and ``gfl_head.py``. Layouts need no change: convolutions are
(out, in, height, width) in both, and there are no linear layers.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

Rules = tuple[tuple[str, str | Callable[[re.Match], str]], ...]

# Parts of a model by Paddle's names, and ours.
PARTS = dict(backbone='backbone', neck='neck', head='bbox_head')


@dataclass(frozen=True)
class Naming:
    """Paddle's names of one kind of backbone, neck or head.

    All names are without the part that they begin with.

    Args:
        kind: Paddle's class, a key of ``SIGNS``.
        rules: Patterns and what replaces them, in turn; they lead to our
            names.
        body: Pattern of the names of a backbone, as opposed to those of the
            classifier that it was trained with.
        joined: What two of our names begin with whose tensors are one in
            Paddle, in this order along the first axis; it has the name of
            the first.
        unused: Patterns of names, and why no weight of ours comes of them.
        replaced: Pattern of our names under which our model has other
            layers than Paddle's.
    """

    kind: str
    rules: Rules
    body: str = ''
    joined: tuple[str, str] | None = None
    unused: Mapping[str, str] = field(default_factory=dict)
    replaced: str | None = None

    def ours(self, name: str) -> str:
        """Our name of a weight, by Paddle's."""
        for pattern, replacement in self.rules:
            name = re.sub(pattern, replacement, name)
        return name


# What some name of a part has in a file of this kind. A file that has the
# sign of two is of the first.
SIGNS = dict(
    backbone={
        'ESNet': r'^_conv1\._conv\.',
        'LCNet': r'^blocks2\.0\.dw_conv\.',
        # Of the same file name as the above, with other widths.
        'ESNet of PaddleClas': r'^blocks\.0\.dw_1\.',
    },
    neck=dict(
        CSPPAN=r'^top_down_blocks\.\d+\.main_conv\.',
        LCPAN=r'^top_down_blocks\.\d+\.\d+\.dw_conv\.',
    ),
    head=dict(PicoHeadV2=r'^conv_feat\.se\.', PicoHead=r'^head_cls0\.'),
)


def kind_in_file(part: str, names: Iterable[str]) -> str | None:
    """Which kind of a part has such names, of those that are known.

    Args:
        part: Of ``PARTS``.
        names: Of the part's weights in a file.
    """
    names = list(names)
    for kind, sign in SIGNS[part].items():
        if any(re.search(sign, name) for name in names):
            return kind
    return None


_NORM: Rules = (
    (r'\._mean$', '.running_mean'),
    (r'\._variance$', '.running_var'),
)
# A depthwise and a pointwise convolution in one module.
_SEPARABLE: Rules = (
    (r'\.dwconv\.', '.depthwise_conv.conv.'),
    (r'\.bn1\.', '.depthwise_conv.bn.'),
    (r'\.pwconv\.', '.pointwise_conv.conv.'),
    (r'\.bn2\.', '.pointwise_conv.bn.'),
)
# The same as two convolutions with a norm each (LCNet, LC-PAN).
_LC_BLOCK: Rules = (
    (r'\.dw_conv\.', '.depthwise_conv.'),
    (r'\.pw_conv\.', '.pointwise_conv.'),
)

_ESNET = Naming(
    kind='ESNet',
    body=r'^(_conv1|[234]_\d+)\.',
    rules=(
        *_NORM,
        (r'\._conv\.', '.conv.'),
        (r'\._batch_norm\.', '.bn.'),
        (r'^_conv1\.', 'stem.0.'),
        # Blocks are counted from 1, stages from 2.
        (
            r'^([234])_(\d+)\.',
            lambda m: f'stages.{int(m[1]) - 2}.{int(m[2]) - 1}.',
        ),
        (r'\._se\.conv1\.', '._se.1.'),
        (r'\._se\.conv2\.', '._se.3.'),
        # The stride-2 block, which is the first of its stage.
        (r'\._conv_dw_1\.', '.branch1.0.'),
        (r'\._conv_linear_1\.', '.branch1.1.'),
        (r'\._conv_pw_2\.', '.branch2.0.'),
        (r'\._conv_dw_2\.', '.branch2.1.'),
        (r'^(stages\.\d\.0)\._se\.', r'\1.branch2.2.'),
        (r'\._conv_linear_2\.', '.branch2.3.'),
        (r'\._conv_dw_mv1\.', '.fuse.0.'),
        (r'\._conv_pw_mv1\.', '.fuse.1.'),
        # The stride-1 block.
        (r'\._conv_pw\.', '.primary.'),
        (r'\._conv_dw\.', '.cheap.'),
        (r'\._se\.', '.se.'),
        (r'\._conv_linear\.', '.linear.'),
    ),
)
_LCNET = Naming(
    kind='LCNet',
    body=r'^(conv1|blocks[2-6])\.',
    rules=(
        *_NORM,
        *_LC_BLOCK,
        (r'^conv1\.', 'stem.0.'),
        # The first blocks run at strides 2 and 4, in our stem.
        (r'^blocks2\.0\.', 'stem.1.'),
        (r'^blocks3\.(\d+)\.', lambda m: f'stem.{int(m[1]) + 2}.'),
        (r'^blocks([456])\.', lambda m: f'stages.{int(m[1]) - 4}.'),
        (r'\.se\.conv1\.', '.se.1.'),
        (r'\.se\.conv2\.', '.se.3.'),
    ),
)

_NECK: Rules = (
    *_NORM,
    *_SEPARABLE,
    (r'^conv_t\.convs\.', 'laterals.'),
    (r'^first_top_conv\.', 'extra_lateral.'),
    (r'^second_top_conv\.', 'extra_top.'),
    (r'^top_down_blocks\.', 'top_down.'),
    (r'^bottom_up_blocks\.', 'bottom_up.'),
)
_CSPPAN = Naming(
    kind='CSPPAN',
    rules=(
        # Ahead of the rest: a bottleneck ends in a separable convolution.
        (r'\.blocks\.(\d+)\.conv1\.', r'.blocks.\1.0.'),
        (r'\.blocks\.(\d+)\.conv2\.', r'.blocks.\1.1.'),
        *_NECK,
    ),
)
_LCPAN = Naming(
    kind='LCPAN',
    rules=(*_NECK, *_LC_BLOCK),
)

_HEAD: Rules = (
    *_NORM,
    (
        r'^conv_feat\.cls_conv_dw(\d+)\.(\d+)\.',
        r'towers.\1.\2.depthwise_conv.',
    ),
    (
        r'^conv_feat\.cls_conv_pw(\d+)\.(\d+)\.',
        r'towers.\1.\2.pointwise_conv.',
    ),
    (r'^(towers\..*)\.norm\.', r'\1.bn.'),
    # Since 2022-09 v2 has its predictors under two names.
    (r'^head_(cls|reg)(_list\.)?(\d+)\.', r'conv_\1.\3.'),
    (r'^distribution_project\.', 'integral.'),
)
# Made by the class that the original's heads inherit from.
_UNUSED = {r'^p\d+_feat\.scale_reg$': 'not used by the original'}
_PICO_HEAD = Naming(
    kind='PicoHead',
    rules=_HEAD,
    joined=('conv_cls.', 'conv_reg.'),
    unused=_UNUSED,
)
_PICO_HEAD_V2 = Naming(
    kind='PicoHeadV2',
    rules=(
        *_HEAD,
        (r'^conv_feat\.se\.(\d+)\.fc\.', r'se.\1.fc.'),
        (r'^conv_feat\.se\.(\d+)\.conv\.', r'se.\1.'),
        (r'^cls_align\.(\d+)\.dwconv\.', r'align.\1.layers.0.conv.'),
        (r'^cls_align\.(\d+)\.bn1\.', r'align.\1.layers.0.bn.'),
        (r'^cls_align\.(\d+)\.pwconv\.', r'align.\1.layers.1.conv.'),
        (r'^cls_align\.(\d+)\.bn2\.', r'align.\1.layers.1.bn.'),
    ),
    unused=_UNUSED,
)

# By the names of our classes.
NAMINGS = dict(
    ESNet=_ESNET,
    AnchorESNet=replace(_ESNET, replaced=r'^stages\.2\.[12]\.'),
    LCNet=_LCNET,
    CSPPAN=_CSPPAN,
    LCPAN=_LCPAN,
    PicoHead=_PICO_HEAD,
    PicoHeadV2=_PICO_HEAD_V2,
)
