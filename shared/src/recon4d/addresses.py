"""Where a page of ours is served, and who may talk to it: what every small server of the tools checks."""

import ipaddress
import socket
from urllib.parse import urlsplit

from recon4d.files import InputError


def check_address(host: str, port: int) -> None:
    """Raise InputError unless a server can listen there; port 0 is any free one. viser would take the next port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (socket.gaierror, UnicodeError) as error:
            raise InputError(f"--host {host} is not a host's name or address; leave it away") from error
        except (OSError, OverflowError) as error:
            raise InputError(f"--port {port} of --host {host} cannot be used ({error}); give another, or 0") from error


def page_of(host: str, port: int) -> str:
    """The address of a page that is served there."""
    name = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}"


def same_site(asked: str | None, origin: str | None, host: str) -> bool:
    """Whether a request is for this server by an address or name of this machine, and from a page of its own.

    Args:
        asked: the request's Host header. origin: its Origin header, which browsers send with every websocket.
        host: what the server was told to listen on.
    """
    try:
        name = urlsplit(f"//{asked or ''}").hostname or ""
        same = origin is None or urlsplit(origin).netloc == asked
    except ValueError:
        return False
    if not same:
        return False
    if name in ("localhost", host, socket.gethostname().lower()):
        return True
    try:  # a name that someone's own name server points here would be neither
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
