import errno
import os
from pathlib import Path

import pytest

from anchorformer_mm.utils.errors import UsageError, run_command_line


def test_a_usage_error_is_one_message_and_status_2(capsys):
    def main():
        raise UsageError('no data')

    with pytest.raises(SystemExit) as error:
        run_command_line(main)
    assert error.value.code == 2
    assert capsys.readouterr().err == 'error: no data\n'


def test_other_errors_keep_their_trace():
    def main():
        raise KeyError('bug')

    with pytest.raises(KeyError):
        run_command_line(main)


@pytest.mark.parametrize('path', ['file/x', 'file', 'a' * 300])
def test_a_folder_that_cannot_be_made_is_one_message(
    tmp_path, monkeypatch, capsys, path
):
    monkeypatch.chdir(tmp_path)
    Path('file').touch()
    with pytest.raises(SystemExit) as error:
        run_command_line(lambda: os.makedirs(path))
    assert error.value.code == 2
    text = capsys.readouterr().err
    assert text.startswith(f'error: {path}: ') and text.count('\n') == 1


def test_a_file_that_is_not_there_may_be_a_mistake_of_ours(tmp_path):
    with pytest.raises(FileNotFoundError):
        run_command_line(lambda: (tmp_path / 'no').read_text())

    def main():
        raise ConnectionResetError(errno.ECONNRESET, 'reset')

    with pytest.raises(ConnectionResetError):
        run_command_line(main)
