"""The ONNX file: weights bound to a graph, written, and audited."""
