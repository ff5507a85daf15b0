"""What one data set of a config lists, by the library and kind it is of."""

from collections import Counter
from dataclasses import dataclass

from mmengine.config import ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, DefaultScope

from anchorformer_mm.datasets.checks.classes import head_findings
from anchorformer_mm.datasets.checks.classification import read_labels
from anchorformer_mm.datasets.checks.coco import read_coco
from anchorformer_mm.datasets.checks.findings import found
from anchorformer_mm.datasets.checks.image_files import Loader
from anchorformer_mm.datasets.checks.images import Contents, ImageRecord
from anchorformer_mm.datasets.checks.passed_over import unpaired_findings
from anchorformer_mm.datasets.checks.voc import read_voc
from anchorformer_mm.utils.errors import UsageError

# Data sets whose files are checked here, in place of their own code.
_KNOWN = (
    'mmdet.datasets.coco.CocoDataset',
    'mmdet.datasets.xml_style.XMLDataset',
    'mmpretrain.datasets.custom.CustomDataset',
)


@dataclass
class Opened:
    """A data set whose lists have been read and checked.

    Args:
        contents: Its images, and what is wrong with its lists.
        loader: How its pipeline reads images.
        has_places: Whether annotations say where in an image something is.
        segmentation: It itself, if it has label maps to be read.
        coco_file: Its annotations, if a metric may read them too.
    """

    contents: Contents
    loader: Loader
    has_places: bool = True
    segmentation: BaseDataset | None = None
    coco_file: str | None = None


def open_dataset(cfg: ConfigDict, config: ConfigDict, split: str) -> Opened:
    """Read and check the lists of a data set.

    Args:
        cfg: A whole config.
        config: Of a data set in it, without what wraps it.
        split: ``'train'``, ``'val'`` or ``'test'``.

    Raises:
        UsageError: The data set cannot be built.
    """
    dataset = _build(config, cfg.get('default_scope'), split)
    if not isinstance(dataset, BaseDataset):
        finding = found('set-unknown', *dataset)
        return Opened(Contents(findings=[finding]), Loader(), has_places=False)
    loader = _loader(dataset)
    if any(c.__name__ == 'BaseSegDataset' for c in type(dataset).__mro__):
        contents = _read_itself(dataset)
        contents.findings += unpaired_findings(dataset)
        return Opened(contents, loader, segmentation=dataset)
    reader = _reader(type(dataset))
    if reader not in _KNOWN:
        contents = _read_itself(dataset)
        text = f'is of {type(dataset).__name__}, whose labels are not checked'
        finding = found('set-unknown', _place(dataset), text)
        contents.findings.append(finding)
        return Opened(contents, loader, has_places=False)
    classes = dataset.metainfo.get('classes')
    is_coco = reader.endswith('.CocoDataset')
    is_classification = reader.endswith('.CustomDataset')
    if is_classification:
        contents, classes = read_labels(dataset, split, cfg)
    else:
        contents = (read_coco if is_coco else read_voc)(dataset, split)
    contents.findings += head_findings(cfg, classes, _place(dataset))
    return Opened(
        contents,
        loader,
        has_places=not is_classification,
        coco_file=dataset.ann_file if is_coco else None,
    )


def _reader(kind: type[BaseDataset]) -> str:
    """The class whose code reads the lists; '' where several do."""
    owners = set()
    for method in ('load_data_list', 'parse_data_info'):
        owner = next(c for c in kind.__mro__ if method in vars(c))
        if owner is not BaseDataset:
            owners.add(f'{owner.__module__}.{owner.__name__}')
    return owners.pop() if len(owners) == 1 else ''


def _build(
    config: ConfigDict, scope: str | None, split: str
) -> BaseDataset | tuple[str, str]:
    """Build a data set, or say what it is called and why it is left alone."""
    name = f'{split}_dataloader'
    if _is_elsewhere(config):
        return name, 'reads data that is not on this machine, unchecked'
    kind = config.get('type')
    if isinstance(kind, str):
        with DATASETS.switch_scope_and_registry(scope) as registry:
            kind = registry.get(kind)
    if isinstance(kind, type) and not issubclass(kind, BaseDataset):
        return name, f'has a {kind.__name__}, which is not checked'
    try:
        with DefaultScope.overwrite_default_scope(scope):
            built = DATASETS.build(ConfigDict(config, lazy_init=True))
    # Data sets refuse their arguments each in a way of its own.
    except Exception as error:
        if isinstance(error, TypeError) and 'lazy_init' in str(error):
            return name, f'has a {kind.__name__}, which is not checked'
        raise UsageError(
            f'the data set of {split} cannot be built: {error}'
        ) from error
    # mmengine cannot serialise a data set in which there is nothing.
    built.serialize_data = False
    return built


def _is_elsewhere(config: ConfigDict) -> bool:
    prefix = config.get('data_prefix') or {}
    places = prefix.values() if isinstance(prefix, dict) else [prefix]
    places = [config.get('data_root'), config.get('ann_file'), *places]
    return any('://' in str(place) for place in places) or bool(
        config.get('backend_args')
    )


def _read_itself(dataset: BaseDataset) -> Contents:
    """Let a data set read its lists by its own code."""
    place = _place(dataset)
    try:
        dataset.full_init()
    except Exception as error:
        text = f'cannot be read ({type(error).__name__}: {error})'
        return Contents(findings=[found('annotation-file', place, text)])
    infos = (dataset.get_data_info(index) for index in range(len(dataset)))
    counts = Counter(info['img_path'] for info in infos if 'img_path' in info)
    contents = Contents([ImageRecord(path) for path in counts])
    if len(dataset) == 0:
        suffix = getattr(dataset, 'img_suffix', None)
        text = f'has no image (img_suffix={suffix!r})'
        contents.findings.append(found('set-empty', place, text))
    contents.findings += [
        found('image-twice', place, f'lists {path} {count} times')
        for path, count in counts.items()
        if count > 1
    ]
    return contents


def _place(dataset: BaseDataset) -> str:
    """What to call a data set: its list of annotations, or its folder."""
    folders = dataset.data_prefix.values()
    return dataset.ann_file or next(filter(None, folders), dataset.data_root)


def _loader(dataset: BaseDataset) -> Loader:
    for transform in dataset.pipeline.transforms:
        if hasattr(transform, 'color_type'):
            backend = getattr(transform, 'imdecode_backend', None)
            return Loader(transform.color_type, backend or 'cv2')
    return Loader()
