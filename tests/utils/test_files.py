import pytest

from anchorformer_mm.utils.files import replacing


def test_the_file_appears_whole(tmp_path):
    path = tmp_path / 'a' / 'b.txt'
    with replacing(path) as temporary:
        temporary.write_text('new')
        assert temporary.suffix == '.txt'
        assert not path.exists()
    assert path.read_text() == 'new'
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / 'b.txt'
    path.write_text('old')
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text('half')
        raise ZeroDivisionError
    assert path.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [path]
