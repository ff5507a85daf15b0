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
