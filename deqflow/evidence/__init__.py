"""All measurements: diagnostics, evaluation, confidence, costs, experiments, and the results files they make."""
