"""Reports: notebooks run by papermill, exported as pages that need no network, with an index to start from."""

from deqflow.reports.build import build_reports, find_notebooks, run_notebook
from deqflow.reports.index import Report

__all__ = ["Report", "build_reports", "find_notebooks", "run_notebook"]
