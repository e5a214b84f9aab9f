"""Reports: notebooks run by papermill and exported as pages that need no network, with an index page."""

from deqflow.lab.reports.build import build_reports, run_notebook
from deqflow.lab.reports.differences import Difference, differences, is_time
from deqflow.lab.reports.index import NotebookRun
from deqflow.lab.reports.profiles import find_notebooks, parameters_of, prepare_notebooks

__all__ = [
    "Difference",
    "NotebookRun",
    "build_reports",
    "differences",
    "find_notebooks",
    "is_time",
    "parameters_of",
    "prepare_notebooks",
    "run_notebook",
]
