"""The figures, each a pure function of arrays or of collected results; one style file; no torch.

`python -m fbt_paper.figures KIND ...` draws one figure: PDF, PNG and the plotted numbers beside it.
"""
