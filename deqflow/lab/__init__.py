"""Tools of the notebooks: helpers, plots, live panels, and the pages of the reports."""
