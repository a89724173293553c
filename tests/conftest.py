"""Settings every test shares: one torch thread (PyTorch's CPU kernels give the same bytes only then)."""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background, where shells ignore Ctrl-C: the programs under test are to heed it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
