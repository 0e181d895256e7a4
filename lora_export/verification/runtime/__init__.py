"""The runtime level: an ONNX file held against torch, by ONNX Runtime's outputs."""
