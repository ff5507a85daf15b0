import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from anchorformer_mm.analysis.benchmark_networks import candidate_of_file
from anchorformer_mm.analysis.forward_pass import Conditions
from anchorformer_mm.deployment.onnx_file import read_onnx
from anchorformer_mm.deployment.onnx_model import open_session
from anchorformer_mm.deployment.quantization import quantize
from anchorformer_mm.utils.errors import UsageError

READERS = dict(
    read=read_onnx,
    evaluate=open_session,
    quantize=lambda path: quantize(path, path.with_name('q.onnx'), [None]),
    benchmark=lambda path: candidate_of_file('m', path).export(
        path.with_name('copy.onnx'), Conditions((8, 8))
    ),
    describe=lambda path: candidate_of_file('m', path).read(),
)


@pytest.fixture
def hostile(tmp_path, small_onnx):
    """A model with a tensor whose values are in another file."""
    tensor = numpy_helper.from_array(np.arange(40, dtype=np.float32), 'w')
    tensor.ClearField('raw_data')
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key='location', value='secret')
    (tmp_path / 'secret').write_bytes(bytes(160))
    model = small_onnx(tensors=[tensor])
    (tmp_path / 'm.onnx').write_bytes(model.SerializeToString())
    return tmp_path / 'm.onnx'


@pytest.mark.parametrize('name', READERS)
def test_no_other_file_is_read(hostile, name):
    before = sorted(hostile.parent.iterdir())
    with pytest.raises(UsageError, match=r'm\.onnx has data in other files'):
        READERS[name](hostile)
    assert sorted(hostile.parent.iterdir()) == before


@pytest.mark.parametrize('name', READERS)
def test_other_files_are_refused(tmp_path, name):
    path = tmp_path / 'm.onnx'
    path.write_bytes(b'junk')
    with pytest.raises(UsageError, match=r'm\.onnx is no usable ONNX file: '):
        READERS[name](path)


def test_data_elsewhere_is_found_within_functions_and_branches(tmp_path):
    tensor = TensorProto(data_location=TensorProto.EXTERNAL)
    sparse = onnx.SparseTensorProto(indices=tensor)
    graph = onnx.GraphProto(sparse_initializer=[sparse])
    branch = onnx.AttributeProto(name='a', graphs=[graph])
    node = onnx.NodeProto(attribute=[branch])
    models = [
        onnx.ModelProto(graph=onnx.GraphProto(node=[node])),
        onnx.ModelProto(functions=[onnx.FunctionProto(node=[node])]),
    ]
    for model in models:
        (tmp_path / 'm.onnx').write_bytes(model.SerializeToString())
        with pytest.raises(UsageError, match='has data in other files'):
            read_onnx(tmp_path / 'm.onnx')


def test_what_this_reader_does_not_know_is_not_handed_on(tmp_path):
    # As data_location 2^32 + 1 of a tensor, which others may cut to 1.
    tensor = b'\x70\x81\x80\x80\x80\x10'
    content = b'\x3a\x08\x2a\x06' + tensor
    (tmp_path / 'm.onnx').write_bytes(content)
    try:
        model = read_onnx(tmp_path / 'm.onnx')
    except UsageError as error:
        assert 'has data in other files' in str(error)
    else:
        assert tensor not in model.SerializeToString()


def test_a_file_with_all_its_data_is_read_as_it_is(tmp_path, small_onnx):
    tensor = numpy_helper.from_array(np.arange(40, dtype=np.float32), 'w')
    model = small_onnx(tensors=[tensor])
    # Its suffix would stand for a format of text.
    onnx.save(model, tmp_path / 'm.onnx')
    (tmp_path / 'm.onnx').rename(tmp_path / 'm.json')
    assert read_onnx(tmp_path / 'm.json') == model
    assert len(open_session(tmp_path / 'm.json').get_outputs()) == 1
