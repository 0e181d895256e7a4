"""Folders of ONNX files as their runtimes look for them."""
