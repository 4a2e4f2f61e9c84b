"""Reports: one self-contained HTML page about one or several runs; and the live display of a run."""

from __future__ import annotations

from tacit.report.page import verdicts, write_report
from tacit.report.runs import ReportError

__all__ = ["ReportError", "verdicts", "write_report"]
