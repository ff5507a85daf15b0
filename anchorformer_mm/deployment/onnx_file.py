"""ONNX files of others, read without what they refer to."""

from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import DecodeError, Message
from onnx import ModelProto, TensorProto

from anchorformer_mm.utils.errors import UsageError


def read_onnx(path: str | Path) -> ModelProto:
    """Read an ONNX file that has all its data inside.

    A tensor may name another file for its values, any of the machine, and
    ONNX Runtime before 1.24 reads that. What is returned refers to nothing:
    hand this on, not the file, which could be another one by then.

    Args:
        path: The file; always taken as binary, whatever its suffix.

    Raises:
        UsageError: It is not there, no ONNX file, or has data in other files.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f'ONNX file not found: {path}')
    try:
        model = ModelProto.FromString(path.read_bytes())
    except DecodeError as error:
        reason = ' '.join(str(error).split())
        raise UsageError(f'{path} is no usable ONNX file: {reason}') from error
    # Of another reader, they could be fields that it knows.
    model.DiscardUnknownFields()
    for tensor in _tensors(model):
        if tensor.external_data or tensor.data_location:
            raise UsageError(
                f'{path} has data in other files, and could name any file of '
                'this machine: save it with all data inside'
            )
    return model


def _tensors(message: Message) -> Iterator[TensorProto]:
    """All tensors in a message, however deep: the format may yet grow."""
    todo = [message]
    while todo:
        message = todo.pop()
        if isinstance(message, TensorProto):
            yield message
            continue
        for field, value in message.ListFields():
            if field.message_type is not None:
                todo += [value] if isinstance(value, Message) else value
