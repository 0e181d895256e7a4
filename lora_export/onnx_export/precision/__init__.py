"""ONNX files in fewer bits: weights rounded, and read back for the audit."""
