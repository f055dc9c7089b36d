"""Deployment: checkpoint in, verified ONNX file out."""

import models  # noqa: F401  (before onnxruntime.quantization, which puts a folder with other `models` on the path)
from toolkit.deploy.export import export_onnx
from toolkit.deploy.report import Check, Figures, Rejected, Report
from toolkit.deploy.verification import verify

__all__ = ["Check", "Figures", "Rejected", "Report", "export_onnx", "verify"]
