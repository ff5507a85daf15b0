"""The command that checks the data of a config."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from anchorformer_mm.datasets import DIGIT_CLASSES

ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools' / 'misc' / 'check_dataset.py'
CONFIG = str(ROOT / 'configs' / 'picodet_anchorformer_t_digits.py')
VAL = 'data/digits/annotations/instances_val.json'


def write(split, count):
    """A few images of 192 px with ten boxes each, one of each digit."""
    numbers = range(1, count + 1)
    folder = Path('data/digits', split)
    folder.mkdir(parents=True)
    for number in numbers:
        Image.new('RGB', (192, 192)).save(folder / f'{number}.jpg')
    content = dict(
        images=[
            dict(id=n, file_name=f'{n}.jpg', width=192, height=192)
            for n in numbers
        ],
        annotations=[
            dict(
                id=10 * n + digit,
                image_id=n,
                category_id=digit,
                bbox=[digit, digit, 20, 30],
                area=600,
                iscrowd=0,
            )
            for n in numbers
            for digit in range(10)
        ],
        categories=[
            dict(id=i, name=name) for i, name in enumerate(DIGIT_CLASSES)
        ],
    )
    path = Path('data/digits/annotations', f'instances_{split}.json')
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def main(tmp_path, monkeypatch):
    """Run the command in this process, beside a few images."""
    monkeypatch.chdir(tmp_path)
    write('train', 8)
    write('val', 4)
    spec = importlib.util.spec_from_file_location('tool', TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)

    def main(*args, config=CONFIG):
        monkeypatch.setattr(sys, 'argv', ['tool', config, *args])
        tool.run_command_line(tool.main)

    return main


def test_clean_data_ends_in_status_zero(main, capsys):
    main()
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == '0 errors, 0 warnings'
    assert 'images read: train 8 of 8, val and test 4 of 4' in err


def test_an_error_ends_in_status_one_and_names_the_file(main, capsys):
    Path('data/digits/val/2.jpg').write_bytes(b'none')
    with pytest.raises(SystemExit) as error:
        main('--splits', 'val')
    assert error.value.code == 1
    out, err = capsys.readouterr()
    line = 'error: val: data/digits/val/2.jpg is no image; get it again'
    assert line in out
    assert '1 errors, 0 warnings' in out
    assert 'val 4 of 4' in err


def test_warnings_alone_end_in_status_zero(main, capsys):
    content = json.loads(Path(VAL).read_text())
    for entry in content['annotations'][:3]:
        entry['bbox'] = [180, 0, 20, 30]
    Path(VAL).write_text(json.dumps(content))
    main('--splits', 'val', '--limit', '1')
    out = capsys.readouterr().out
    assert out.count('warning: val: ') == 1
    assert 'and 2 more: val [box-partly-outside]' in out
    assert '0 errors, 3 warnings' in out


def test_a_sample_and_options_reach_the_check(main, capsys):
    with pytest.raises(SystemExit) as error:
        main(
            *('--sample', '2', '--fast', '--workers', '1'),
            *('--cfg-options', 'model.bbox_head.num_classes=7'),
        )
    assert error.value.code == 1
    out, err = capsys.readouterr()
    assert out.count('num_classes=7') == 2
    assert 'train 2 of 8, val and test 2 of 4' in err


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (('--sample', '0'), '--sample must be >= 1, got 0'),
        (('--workers', '-1'), '--workers must be >= 1, got -1'),
        (('--limit', '-1'), '--limit must be >= 0, got -1'),
        (('--cfg-options', 'default_scope=mmpose'), 'is of mmpose'),
    ],
)
def test_what_cannot_run_ends_in_status_two(main, capsys, args, message):
    with pytest.raises(SystemExit) as error:
        main(*args)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_data_that_is_not_there_ends_in_status_two(main, capsys):
    Path(VAL).unlink()
    with pytest.raises(SystemExit) as error:
        main()
    assert error.value.code == 2
    assert 'missing' in capsys.readouterr().err
