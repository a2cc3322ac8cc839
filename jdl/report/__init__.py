"""HTML reports about a run, several runs or a search, beside simple baselines."""
