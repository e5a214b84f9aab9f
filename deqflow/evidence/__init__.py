"""Everything that measures: diagnostics, evaluation, confidence, costs, experiments, and their results files."""
