"""The figures, each a pure function of arrays or of collected results; one style file; no torch.

`fbt draw NAME` draws one of them: PDF, PNG and the plotted numbers beside it.
"""

import os

os.environ.pop("MPLBACKEND", None)  # a notebook's terminal names one that only its kernel can load
