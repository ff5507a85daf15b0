"""predict_onnx.py reads no file that an ONNX file names."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper


def tensor_elsewhere(location='secret', *, declared=True):
    """A tensor of four bytes whose values are in another file."""
    tensor = TensorProto(name='w', data_type=TensorProto.UINT8, dims=[4])
    if declared:
        tensor.data_location = TensorProto.EXTERNAL
    for key, value in dict(location=location, offset='0', length='4').items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def reader(small_onnx, tensor):
    """A model that would tell what its tensor holds."""
    nodes = [
        helper.make_node('Cast', ['w'], ['floats'], to=1),
        helper.make_node('Unsqueeze', ['floats', 'first'], ['row']),
        helper.make_node('ReduceMean', ['images'], ['mean'], keepdims=1),
        helper.make_node('Flatten', ['mean'], ['flat']),
        helper.make_node('Add', ['flat', 'row'], ['scores']),
    ]
    first = numpy_helper.from_array(np.int64([0]), 'first')
    return small_onnx(nodes, [tensor, first])


@pytest.mark.parametrize('declared', [True, False])
@pytest.mark.parametrize('kind', ['beside', 'above', 'absolute', 'link'])
def test_no_other_file_is_read(tmp_path, small_onnx, refusal, kind, declared):
    secret = tmp_path / 'secret'
    secret.write_bytes(bytes([50, 60, 70, 80]))
    (tmp_path / 'link').symlink_to(secret)
    (tmp_path / 'x').mkdir()
    location = dict(
        beside='secret',
        above='x/../../' + tmp_path.name + '/secret',
        absolute=str(secret),
        link='link',
    )[kind]
    model = reader(small_onnx, tensor_elsewhere(location, declared=declared))
    assert 'has data in other files' in refusal(model.SerializeToString())


def test_no_memory_is_read(small_onnx, refusal):
    # What ONNX Runtime takes for an address in its own memory.
    tensor = tensor_elsewhere('*/_ORT_MEM_ADDR_/*')
    model = reader(small_onnx, tensor)
    assert 'has data in other files' in refusal(model.SerializeToString())


def nested(tensor):
    """Models with a tensor at each place that there is for one."""
    sparse = onnx.SparseTensorProto(values=tensor)
    indices = onnx.SparseTensorProto(indices=tensor)
    graph = onnx.GraphProto(initializer=[tensor])

    def attribute(**kwargs):
        made = onnx.AttributeProto(name='a', **kwargs)
        return onnx.NodeProto(op_type='If', attribute=[made])

    nodes = [
        attribute(t=tensor),
        attribute(tensors=[TensorProto(), tensor]),
        attribute(sparse_tensor=sparse),
        attribute(sparse_tensors=[indices]),
        attribute(g=graph),
        attribute(graphs=[onnx.GraphProto(), graph]),
    ]
    # Within the branches of a branch.
    nodes += [attribute(g=onnx.GraphProto(node=[n])) for n in nodes]
    graphs = [onnx.GraphProto(node=[n]) for n in nodes]
    graphs += [
        graph,
        onnx.GraphProto(sparse_initializer=[sparse]),
        onnx.GraphProto(sparse_initializer=[indices]),
    ]
    for graph in graphs:
        yield onnx.ModelProto(graph=graph)
        for place in ('initialization', 'algorithm'):
            info = onnx.TrainingInfoProto(**{place: graph})
            yield onnx.ModelProto(training_info=[info])
    for node in nodes:
        yield onnx.ModelProto(functions=[onnx.FunctionProto(node=[node])])
    default = onnx.AttributeProto(name='a', t=tensor)
    function = onnx.FunctionProto(attribute_proto=[default])
    yield onnx.ModelProto(functions=[function])


def test_data_elsewhere_is_found_at_every_place(predict_onnx):
    inside = numpy_helper.from_array(np.arange(300, dtype=np.float32), 'w')
    outside = tensor_elsewhere()
    for clean, hostile in zip(nested(inside), nested(outside), strict=True):
        assert not predict_onnx.has_external_data(clean.SerializeToString())
        assert predict_onnx.has_external_data(hostile.SerializeToString())


def test_every_message_that_leads_to_a_tensor_is_gone_through(predict_onnx):
    """Against the format as the package onnx has it."""
    names = dict(
        ModelProto='model',
        TrainingInfoProto='training',
        GraphProto='graph',
        FunctionProto='function',
        NodeProto='node',
        AttributeProto='attribute',
        SparseTensorProto='sparse tensor',
        TensorProto='tensor',
    )

    def messages(kind):
        return {
            f.number: f.message_type for f in kind.fields if f.message_type
        }

    kinds, todo = {}, [onnx.ModelProto.DESCRIPTOR]
    while todo:
        kind = todo.pop()
        if kind.name not in kinds:
            kinds[kind.name] = kind
            todo += messages(kind).values()
    leading, before = {'TensorProto'}, set()
    while leading != before:
        before = set(leading)
        leading |= {
            name
            for name, kind in kinds.items()
            if {m.name for m in messages(kind).values()} & leading
        }
    for name in leading - {'TensorProto'}:
        parts = {
            number: names[part.name]
            for number, part in messages(kinds[name]).items()
            if part.name in leading
        }
        assert predict_onnx.PARTS[names[name]] == parts
    fields = TensorProto.DESCRIPTOR.fields_by_name
    assert fields['external_data'].number == predict_onnx.EXTERNAL_DATA
    assert fields['data_location'].number == predict_onnx.DATA_LOCATION


@pytest.mark.parametrize(
    'field',
    [
        b'\x70\x01',
        b'\x70\x81\x80\x80\x80\x10',  # 2^32 + 1, which some readers cut off
        b'\x70\x80\x00\x70\x01',
        b'\xf0\x80\x00\x01',  # a longer way to write the tag
    ],
)
def test_unusual_ways_to_write_it_are_seen(predict_onnx, field):
    tensor = bytes([0x2A, len(field)]) + field
    content = bytes([0x3A, len(tensor)]) + tensor
    assert predict_onnx.has_external_data(content)


@pytest.mark.parametrize(
    'content',
    [
        b'\x3a',
        b'\x3a\x05\x00',
        b'\x3b\x3c',  # a group
        b'\xba\x80\x80\x80\x10\x00',  # a tag of more than 32 bits
        b'\x00\x00',
        b'\xff' * 20,
        b'\x3a\x02\x2a\x05',  # longer than what it is in
    ],
)
def test_damaged_files_are_refused(predict_onnx, refusal, content):
    with pytest.raises(ValueError, match='damaged at byte'):
        predict_onnx.has_external_data(content)
    assert 'is no usable ONNX file: it is damaged' in refusal(content)


@settings(max_examples=150, deadline=None)
@given(content=st.binary(max_size=60))
def test_any_bytes_are_judged(predict_onnx, content):
    try:
        predict_onnx.has_external_data(content)
    except ValueError:
        return
    # Whoever takes them for a model finds no data elsewhere either.
    try:
        model = onnx.ModelProto.FromString(content)
    except Exception:
        return
    assert not any(t.external_data for t in model.graph.initializer)


def test_deep_nesting_is_gone_through(predict_onnx):
    graph = onnx.GraphProto(initializer=[tensor_elsewhere()])
    content = graph.SerializeToString()
    for _ in range(300):
        for tag in (0x32, 0x2A, 0x0A):  # g of an attribute of a node
            content = bytes([tag]) + length_of(content) + content
    content = b'\x3a' + length_of(content) + content
    assert predict_onnx.has_external_data(content)


def length_of(content):
    number, out = len(content), bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def test_other_formats_of_onnx_runtime_are_not_taken(refusal):
    assert 'is no usable ONNX file' in refusal(b'\x18\0\0\0ORTM' + b'\0' * 99)
