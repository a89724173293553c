"""The results page: one self-contained HTML file with every table, every figure and every run behind them."""
