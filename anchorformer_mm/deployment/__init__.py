"""From trained models to ONNX files."""
