"""ONNX files of torch models, whose graphs do not depend on the weights they hold."""
