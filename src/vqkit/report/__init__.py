"""One page about any number of runs: `write_report([read_run(folder), ...], "report.html")`."""

from vqkit.report.page import Report, write_report
from vqkit.report.runs import Run, distinct, read_run

__all__ = ["Report", "Run", "distinct", "read_run", "write_report"]
