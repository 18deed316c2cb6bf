"""Artifact formats and runtimes."""

from __future__ import annotations

from typing import Literal

EngineName = Literal["auto", "keras", "openvino", "onnxruntime"]


Precision = Literal["float32", "bfloat16"]


ArtifactFormat = Literal["onnx", "openvino", "saved_model", "litert"]


ARTIFACT_SUFFIXES: dict[str, ArtifactFormat] = {
    ".onnx": "onnx",
    ".xml": "openvino",
    "": "saved_model",  # a folder
    ".tflite": "litert",
}
