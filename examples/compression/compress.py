"""Makes an ONNX model smaller: weights as eight-bit integers, by ONNX Runtime's dynamic quantisation.

The input is `{"model.onnx": {"$ref": "artifact:…"}}`, the output `{"files": {"model.onnx": {"$ref": "artifact:…"}}, "bytes", "bytes_before"}`:
what `register` takes. The worker hands files in and out, by `process.files` in models.toml.
"""

import os

from taskyard_model import TaskError, model

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

NAME = "model.onnx"


@model
def compress(input, task):
    if not isinstance(input, dict) or "$file" not in input.get(NAME, {}):
        raise TaskError("bad_input", f"{NAME} must name an artifact")
    before = input[NAME]["$file"]
    after = os.path.join(task.folder, "compressed.onnx")
    task.progress(0.1, "reading the model")
    try:
        onnx.checker.check_model(before)
    except Exception as problem:
        raise TaskError("bad_input", f"{NAME} is no ONNX model: {problem}") from problem
    task.progress(0.3, "quantising")
    quantize_dynamic(before, after, weight_type=QuantType.QInt8)
    return {
        "files": {NAME: {"$file": after}},
        "bytes": os.path.getsize(after),
        "bytes_before": os.path.getsize(before),
    }


if __name__ == "__main__":
    compress.serve()
