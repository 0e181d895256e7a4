"""From a torch model to an ONNX file whose graph does not depend on the weights it holds."""
