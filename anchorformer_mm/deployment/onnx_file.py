"""SHIM"""

from anchorformer_mm.deployment.onnx_model import read_onnx  # noqa: F401
