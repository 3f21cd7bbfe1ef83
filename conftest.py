"""What holds for all tests."""

import os

# Several processes test at once: threads of torch in each would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
