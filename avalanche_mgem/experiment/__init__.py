"""Methods, runs, comparisons and reports."""
