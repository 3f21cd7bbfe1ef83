"""What holds for all tests."""

import os
import signal
import sys

# Several processes test at once: threads of torch in each would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Compiled modules are kept for the many processes that tests start, as they are on a user's machine.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Where the tests run in the background, Ctrl-C is ignored, also by the commands that they start and then stop with it.
signal.signal(signal.SIGINT, signal.default_int_handler)
