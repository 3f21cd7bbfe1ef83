"""Clips read ahead and held."""

import threading

import pytest
from flux4d.streams import Stream


def test_what_is_read_and_held():
    read, threads = [], set()

    def make(number):
        read.append(number)
        threads.add(threading.current_thread().name)
        return f"clip {number}"

    with Stream(make, 2) as stream:
        assert stream(3) == "clip 3"
        stream.ahead([3, 5, 7])  # 3 is held: 5 is read, and 7 not before it is taken
        assert stream(5) == "clip 5" and stream(3) == "clip 3" and read == [3, 5]
        stream.ahead([7])
        assert stream(7) == "clip 7" and stream(3) == "clip 3"  # 5 was used longest ago
        assert stream(5) == "clip 5" and read == [3, 5, 7, 5]
    assert len(threads) == 2


def test_what_reading_raises():
    def make(number):
        raise ValueError(f"clip {number} is broken")

    with Stream(make, 1) as stream:
        stream.ahead([4])
        with pytest.raises(ValueError, match="clip 4"):
            stream(4)
