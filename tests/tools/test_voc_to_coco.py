"""The command that turns VOC annotations into COCO's."""

import importlib.util
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config
from PIL import Image

from anchorformer_mm.utils.dataset_paths import LAYOUTS, require_datasets

ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools' / 'dataset_converters' / 'voc_to_coco.py'
XML = """\
<annotation>
  <size><width>64</width><height>48</height></size>
  <object>
    <name>WBC</name>
    <bndbox>
      <xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>{ymax}</ymax>
    </bndbox>
  </object>
</annotation>
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A place where data/BCCD_Dataset lies as published."""
    root = tmp_path / 'data/BCCD_Dataset/BCCD'
    for name in ('Annotations', 'JPEGImages', 'ImageSets/Main'):
        (root / name).mkdir(parents=True)
    for split, ymax in (('train', 9), ('val', 2), ('test', 9)):
        (root / f'ImageSets/Main/{split}.txt').write_text(f'{split}_0\n')
        path = root / f'Annotations/{split}_0.xml'
        path.write_text(XML.format(ymax=ymax))
        Image.new('RGB', (64, 48)).save(root / f'JPEGImages/{split}_0.jpg')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def main(monkeypatch):
    """Run the command in this process."""
    spec = importlib.util.spec_from_file_location('tool', TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)

    def main(*args):
        monkeypatch.setattr(sys, 'argv', ['tool', *args])
        tool.run_command_line(tool.main)

    return main


@pytest.mark.smoke
def test_the_commands_of_the_hint_make_what_the_configs_ask_for(
    folder, main, capsys
):
    clone, convert, copy = LAYOUTS['bccd'].split(' && ')
    assert shlex.split(clone)[-1] == 'data/BCCD_Dataset'
    python, script, *args = shlex.split(convert)
    assert (python, ROOT / script) == ('python', TOOL)
    main(*args)
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        f'data/bccd/{split}.json: 1 images, {count} boxes of RBC, WBC, '
        'Platelets'
        for split, count in (('train', 1), ('val', 0), ('test', 1))
    ]
    assert err.splitlines() == [
        "warning: no object of class 'RBC'; found: WBC",
        "warning: no object of class 'Platelets'; found: WBC",
        'warning: val: boxes less than a pixel wide or high, left out: 1, in '
        'val_0.xml',
    ]
    *command, source, target = shlex.split(copy)
    assert command == ['cp', '-r']
    shutil.copytree(source, target)
    cfg = Config.fromfile(ROOT / 'configs/picodet_s_bccd.py')
    require_datasets(cfg, ('train', 'val', 'test'))
    classes = args[args.index('--classes') + 1 :][:3]
    assert list(cfg.train_dataloader.dataset.metainfo.classes) == classes


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (('--splits', 'no'), 'no.txt does not exist; lists there: test, tra'),
        (('--classes', 'a', 'a'), 'classes must be different names, at'),
        (('--out', 'file'), "'file"),
        (('--out', 'old', '--splits', 'val'), '--overwrite replaces'),
    ],
)
def test_what_cannot_work_is_one_line_and_writes_nothing(
    folder, main, capsys, args, message
):
    (folder / 'file').touch()
    (folder / 'old').mkdir()
    (folder / 'old/val.json').touch()
    before = {*folder.rglob('*')}
    with pytest.raises(SystemExit) as error:
        main('data/BCCD_Dataset/BCCD', '--out', 'out', *args)
    assert error.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('error: ')
    assert message in line
    assert {*folder.rglob('*')} == before


def test_needs_no_deep_learning_library_to_run(folder):
    script = (
        'import runpy, sys\n'
        'sys.argv = ["tool", "data/BCCD_Dataset/BCCD", "--out", "out"]\n'
        f'runpy.run_path(r"{TOOL}", run_name="__main__")\n'
        'heavy = {"torch", "mmengine", "mmcv", "mmdet"} & {*sys.modules}\n'
        'print(sorted(heavy))\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', script],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.splitlines()[-1] == '[]', done.stderr
    assert (folder / 'out/val.json').is_file()
