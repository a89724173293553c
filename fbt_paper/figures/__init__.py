"""The figures, each a pure function of arrays or of collected results; one style file; no torch.

`fbt draw NAME` draws one of them: PDF, PNG and the plotted numbers beside it.
"""
