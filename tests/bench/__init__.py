"""What the project promises of time and memory, measured against the published way: ``make bench``."""
