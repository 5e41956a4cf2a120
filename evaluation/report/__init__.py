"""What people look at: text tables, the page and its pictures."""

from evaluation.report.html import LIMIT, write_report_page
from evaluation.report.opening import RunFlags, read_evaluation
from evaluation.report.text import format_report, layout, write_results

__all__ = [
    "LIMIT",
    "RunFlags",
    "format_report",
    "layout",
    "read_evaluation",
    "write_report_page",
    "write_results",
]
