"""The plan: which runs the tables need, where their files lie, and what they cost."""
