"""What the notebooks draw and touch: helpers of a notebook, plots, live panels, and the pages of the reports."""
