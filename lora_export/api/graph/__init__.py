"""ONNX files, made and proven."""
