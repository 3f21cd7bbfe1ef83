"""What holds for all tests."""

import os
import signal

# Several processes test at once: threads of torch in each would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Where the tests run in the background, Ctrl-C is ignored, also by the commands that they start and then stop with it.
signal.signal(signal.SIGINT, signal.default_int_handler)
