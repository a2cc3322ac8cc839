"""Audits of classifiers: scores by group, calibration, conformal sets, robustness, model cards."""

from jdl.audit.report import Audit, audit, audit_predictions

__all__ = ["Audit", "audit", "audit_predictions"]
