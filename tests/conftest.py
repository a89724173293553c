"""Settings every test shares: one torch thread (PyTorch's CPU kernels give the same bytes only then)."""

import os
import signal
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background, where shells ignore Ctrl-C: the programs under test are to heed it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Locks of GPU slots that no other test process on this machine shares.
os.environ["GPU_SLOTS_FOLDER"] = tempfile.mkdtemp(prefix="gpu-slots-")
