"""The command-line pieces that tools share."""

import socket

import pytest
from recon4d import InputError
from recon4d.viewer import check_address


def test_addresses_that_no_server_can_have():
    check_address("127.0.0.1", 0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match=r"--port \d+ of --host 127\.0\.0\.1 cannot be used"):
            check_address("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(InputError, match=r"--host 203\.0\.113\.7 cannot be used"):
        check_address("203.0.113.7", 8080)
    with pytest.raises(InputError, match="--host no such host is not a host's name"):
        check_address("no such host", 8080)
