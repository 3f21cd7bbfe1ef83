"""Commands in forks of a process that has imported torch: they start in milliseconds, not in seconds.

    done = forks.run("flux4d", "eval", "--help")          as subprocess.run: returncode, stdout, stderr
    done = forks.run("python", "-c", code, ...)           the same with a program given as text
    done = forks.anew("flux4d", "eval", "--help")         without a fork, for what is read at an import
    process = forks.start("flux4d", "overfit", ...)       to be killed: poll(), said(), kill(), communicate()
    forks.programs()                                      a folder for a shell's PATH: programs that do the same

Each is a process of its own with its own arguments, folder and environment; what it does not do anew is to import. Of
variables that are read at an import it sees those of the tests. A tool's own modules are imported anew, but for its
cli. Only Linux forks safely; elsewhere programs are started as usual.
"""

import atexit
import contextlib
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from functools import cache
from importlib import metadata
from pathlib import Path

HEAVY = (
    "recon4d.head",
    "recon4d.mesh",
    "recon4d.metrics",
    "recon4d.splat",
    "pandas",
    "scipy.spatial",
    "timm",
    "torch._dynamo",
)
TOOLS = ("prep-faces", "feat-extract", "flame-encoder", "gaussian-avatar", "eyeball-relight", "flux4d")
FORKS = sys.platform == "linux"
STREAMS = ("stdin", "stdout", "stderr")
# The program behind a tool's name: it hands its words and streams over, and ends as the command ends.
PROGRAM = """#!{python} -IS
import json, os, socket, sys
link = socket.socket(socket.AF_UNIX)
link.connect({address!r})
words = [{name!r}, *sys.argv[1:]]
request = json.dumps([words, os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(link, [len(request).to_bytes(4, "little")], [0, 1, 2])
link.sendall(request)
os._exit(int(link.makefile().readlines()[-1]) & 255)
"""


def run(*words: object, given: str = "") -> subprocess.CompletedProcess:
    """A command of a tool to its end, with a text for its stdin."""
    process = start(*words, given=given)
    out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def anew(*words: object) -> subprocess.CompletedProcess:
    """The same as a shell does it, torch imported again: one command of each tool is tested so."""
    process = Started(words)
    out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def start(*words: object, given: str = "") -> "Process":
    """A command of a tool, its output kept."""
    return (Forked if FORKS else Started)(words, given)


def programs() -> Path:
    """A folder with a program for each tool, to be put before the others in PATH."""
    return Path(_server()).parent if FORKS else Path(sys.executable).parent


class Process:
    """What of `subprocess.Popen` the tests use."""

    def __init__(self, words: tuple, given: str = ""):
        self.args, self.returncode = list(map(str, words)), None
        self.streams = [tempfile.TemporaryFile() for _ in range(3)]  # noqa: SIM115
        self.streams[0].write(given.encode())
        self.streams[0].seek(0)
        self.begin()

    def said(self) -> tuple[str, str]:
        """Its output so far."""
        return tuple(os.pread(file.fileno(), 1 << 30, 0).decode("utf-8", "replace") for file in self.streams[1:])

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        return self.said()


class Started(Process):
    """A process of its own from the beginning."""

    def begin(self) -> None:
        program = sys.executable if self.args[0] == "python" else Path(sys.executable).with_name(self.args[0])
        self._process = subprocess.Popen([program, *self.args[1:]], **dict(zip(STREAMS, self.streams)))

    def poll(self) -> int | None:
        self.returncode = self._process.poll()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self.returncode = self._process.wait(timeout)
        return self.returncode

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)


class Forked(Process):
    def begin(self) -> None:
        self._link = socket.socket(socket.AF_UNIX)
        self._link.connect(_server())
        request = json.dumps([self.args, os.getcwd(), dict(os.environ)]).encode()
        size = len(request).to_bytes(4, "little")
        socket.send_fds(self._link, [size], [file.fileno() for file in self.streams])
        self._link.sendall(request)
        self.pid = self._number()

    def poll(self, timeout: float | None = 0) -> int | None:
        if self.returncode is None and select.select([self._link], [], [], timeout)[0]:
            self.returncode = self._number()
            self._link.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.poll(timeout) is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def _number(self) -> int:
        """A line of the link: first the process's number, in the end its exit code."""
        line = b""
        while not line.endswith(b"\n"):
            byte = self._link.recv(1)
            assert byte, "the process that forks is gone"
            line += byte
        return int(line)


@cache
def _server() -> str:
    """The address of the process that forks; it ends with this one."""
    folder = tempfile.TemporaryDirectory(prefix="forks")
    address = f"{folder.name}/socket"
    process = subprocess.Popen([sys.executable, __file__, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"

    def end() -> None:
        process.stdin.close()
        process.wait()
        folder.cleanup()

    atexit.register(end)
    return address


def _serve(address: str) -> None:
    for name in (*HEAVY, *(f"{tool.replace('-', '_')}.cli" for tool in TOOLS)):
        with contextlib.suppress(ImportError):  # the tests of one tool run without the others' packages
            __import__(name)
    for name in TOOLS:
        program = Path(address).with_name(name)
        program.write_text(PROGRAM.format(python=sys.executable, address=address, name=name))
        program.chmod(0o755)
    scripts = {script.name: script for script in metadata.entry_points(group="console_scripts")}
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    door = socket.socket(socket.AF_UNIX)
    door.bind(address)
    door.listen(16)
    os.write(1, b"ready\n")
    gc.freeze()  # a fork that collects garbage would copy all of it
    while sys.stdin not in select.select([door, sys.stdin], [], [])[0]:
        link, _ = door.accept()
        if os.fork() == 0:
            door.close()
            _keep(link, scripts, Path(address).parent)
        link.close()


def _keep(link: socket.socket, scripts: dict[str, metadata.EntryPoint], programs: Path) -> None:
    """Start the command that was asked for, say its number, and how it ended."""
    size, streams, _, _ = socket.recv_fds(link, 4, 3)
    request = b""
    while len(request) < int.from_bytes(size, "little"):
        request += link.recv(1 << 20)
    words, folder, variables = json.loads(request)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid:
        link.sendall(b"%d\n" % pid)
        link.sendall(b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        os._exit(0)
    link.close()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    code: object = 1
    try:
        if words[:2] == ["python", "-c"]:
            sys.argv = ["-c", *words[3:]]
            code = exec(compile(words[2], "-c", "exec"), {"__name__": "__main__"})
        else:
            # Lightning starts this again for the other processes of a training: they are forks as well.
            sys.argv = [str(programs / words[0]), *words[1:]]
            code = scripts[words[0]].load()()
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))  # taking torch apart takes seconds


if __name__ == "__main__":
    _serve(sys.argv[1])
