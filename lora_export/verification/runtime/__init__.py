"""The level "runtime": compares the outputs of an ONNX file in ONNX Runtime with torch's."""
