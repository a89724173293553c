"""Which runs the paper's tables need, and how their results are shown. Never imports torch."""
