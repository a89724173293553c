"""The tables: measured numbers collected from runs, and shown as CSV, Markdown and LaTeX."""
