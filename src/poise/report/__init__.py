"""Reports: audits read from their folders, as one HTML page and tables."""

from poise.report.overview import latex, markdown, report, summary
from poise.report.runs import Attacked, Audit, read, read_all

__all__ = ["Attacked", "Audit", "latex", "markdown", "read", "read_all", "report", "summary"]
