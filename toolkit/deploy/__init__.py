"""Deployment: checkpoint in, verified ONNX file out."""

import models  # noqa: F401  (before onnxruntime.quantization, which puts a folder with other `models` on the path)
from toolkit.deploy.export import export_onnx
from toolkit.deploy.gate import verify
from toolkit.deploy.report import Check, Figures, Rejected, Report
from toolkit.evaluation.evaluate import SeedsMetrics, evaluate_seeds

__all__ = ["Check", "Figures", "Rejected", "Report", "SeedsMetrics", "evaluate_seeds", "export_onnx", "verify"]
