"""Claims: statements of the paper as data, and what the measured numbers say of each."""
