"""Reports: audits read from their folders, as one HTML page and tables."""

from poise.report.html import report
from poise.report.runs import Attacked, Audit, read, read_all
from poise.report.tables import latex, markdown, summary

__all__ = ["Attacked", "Audit", "latex", "markdown", "read", "read_all", "report", "summary"]
