"""Fetching from a server that breaks off, and archives that mean harm."""

import hashlib
import io
import json
import stat
import subprocess
import sys
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from feat_extract import artifacts
from recon4d import InputError


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.asked.append((self.path, self.headers.get("Range")))
        data = server.files.get(self.path)
        if data is None:
            self.send_error(404)
            return
        start = int(self.headers["Range"][6:-1]) if server.ranges and self.headers.get("Range") else 0
        if start >= len(data) and start:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        end = start + server.broken.pop(0) if server.broken else len(data)
        self.wfile.write(data[start:end])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    """A server on this machine: `files` by path; `broken` holds after how many bytes the next answers break off."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.asked, server.broken, server.ranges = {}, [], [], True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def entry(server, path, data, **more) -> artifacts.Artifact:
    server.files[path] = data
    return artifacts.Artifact(url=server.url + path, sha256=hashlib.sha256(data).hexdigest(), **more)


def zipped(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as pack:
        for name, data in files.items():
            pack.writestr(name, data)
    return buffer.getvalue()


def tarred(*members: tuple[str, bytes, bytes, str]) -> bytes:
    """Members (name, data, type, link target) as .tar.gz."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as pack:
        for name, data, kind, link in members:
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = len(data), kind, link
            pack.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def left(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir() or p.is_symlink())


def test_the_command_fetches_verifies_unpacks_and_keeps(server, tmp_path):
    files = {"feat2d/s 1/0.npy": b"numbers", "feat3d/s/expr_0.npy": b"more"}
    entries = [
        entry(server, "/files/best_scripted.pt", b"script" * 1000, to="checkpoint"),
        entry(server, "/files/dataset%20a.zip?x=1", b""),
        entry(server, "/files/more.tar.gz", tarred(("./lr_image/s/0.png", b"png", tarfile.REGTYPE, "")), to="dataset"),
    ]
    data = zipped(**files)
    server.files["/files/dataset%20a.zip?x=1"] = data
    rows = [e.model_dump() for e in entries]
    rows[1] |= {"sha256": hashlib.sha256(data).hexdigest(), "unpack": True, "to": "dataset"}
    rows[2]["unpack"] = True
    (tmp_path / "list.yaml").write_text(yaml.safe_dump(rows))

    def run():
        command = [str(Path(sys.executable).with_name("feat-extract")), "fetch-artifacts", "list.yaml", "--out", "out"]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    assert run()["fetched"] == ["best_scripted.pt", "dataset a.zip", "more.tar.gz"]
    out = tmp_path / "out"
    assert left(out) == [
        "artifacts.json",
        "checkpoint/best_scripted.pt",
        "dataset/feat2d/s 1/0.npy",
        "dataset/feat3d/s/expr_0.npy",
        "dataset/lr_image/s/0.png",
    ]
    assert (out / "dataset/feat2d/s 1/0.npy").read_bytes() == b"numbers"
    asked = len(server.asked)
    again = run()
    assert len(again["kept"]) == 3 and not again["fetched"] and len(server.asked) == asked


def test_broken_downloads_go_on(server, tmp_path):
    data = bytes(range(256)) * 400
    item = entry(server, "/a.bin", data)
    server.broken = [1000, 0, 5000]
    artifacts.fetch([item], tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == data and left(tmp_path) == ["a.bin", "artifacts.json"]
    assert [r for _, r in server.asked] == [None, "bytes=1000-", "bytes=1000-", "bytes=6000-"]


def test_a_stopped_run_goes_on_with_the_next(server, tmp_path):
    data = b"0123456789" * 1000
    item = entry(server, "/a.bin", data)
    server.broken = [4000, 0, 0]
    with pytest.raises(InputError, match="run the command again to go on"):
        artifacts.fetch([item], tmp_path)
    assert not (tmp_path / "a.bin").exists()
    server.asked.clear()
    artifacts.fetch([item], tmp_path)
    assert server.asked == [("/a.bin", "bytes=4000-")] and (tmp_path / "a.bin").read_bytes() == data


def test_servers_without_ranges_and_stale_parts(server, tmp_path):
    data = b"abc" * 5000
    item = entry(server, "/a.bin", data)
    server.ranges, server.broken = False, [2000]
    artifacts.fetch([item], tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == data
    server.ranges = True
    (tmp_path / "a.bin").unlink()
    part = tmp_path / f".{item.sha256[:16]}.part"
    part.write_bytes(b"x" * len(data))  # as long as the file, but wrong
    artifacts.fetch([item], tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == data


def test_wrong_checksum_and_missing_files(server, tmp_path):
    item = entry(server, "/a.zip", zipped(a=b"1"), unpack=True)
    server.files["/a.zip"] = zipped(a=b"2")
    with pytest.raises(InputError, match=r"a.zip has the SHA-256 .*, not "):
        artifacts.fetch([item], tmp_path)
    del server.files["/a.zip"]
    with pytest.raises(InputError, match=r"a.zip answers 404"):
        artifacts.fetch([item], tmp_path)
    closed = item.model_copy(update={"url": "http://127.0.0.1:9/a.zip"})
    with pytest.raises(InputError, match="can't be fetched"):
        artifacts.fetch([closed], tmp_path)
    assert left(tmp_path) == []


LINK = stat.S_IFLNK << 16


def zip_with(name: str, attributes: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as pack:
        pack.writestr("good.txt", b"good")
        info = zipfile.ZipInfo(name)
        info.external_attr = attributes
        pack.writestr(info, "/etc/passwd")
    return buffer.getvalue()


GOOD = ("good.txt", b"good", tarfile.REGTYPE, "")
HOSTILE = {
    "zip parent": (zip_with("../evil.txt", 0), "outside"),
    "zip deep": (zip_with("a/../../evil.txt", 0), "outside"),
    "zip root": (zip_with("/tmp/evil.txt", 0), "outside"),
    "zip drive": (zip_with("C:\\evil.txt", 0), "outside"),
    "zip backslash": (zip_with("..\\evil.txt", 0), "outside"),
    "zip link": (zip_with("evil", LINK), "link or a device"),
    "tar parent": (tarred(GOOD, ("../evil.txt", b"x", tarfile.REGTYPE, "")), "outside"),
    "tar root": (tarred(GOOD, ("/tmp/evil.txt", b"x", tarfile.REGTYPE, "")), "outside"),
    "tar symlink": (tarred(GOOD, ("evil", b"", tarfile.SYMTYPE, "/etc")), "link or a device"),
    "tar hard link": (tarred(GOOD, ("evil", b"", tarfile.LNKTYPE, "../../x")), "link or a device"),
    "tar device": (tarred(GOOD, ("evil", b"", tarfile.CHRTYPE, "")), "link or a device"),
    "tar fifo": (tarred(GOOD, ("evil", b"", tarfile.FIFOTYPE, "")), "link or a device"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives_write_nothing(server, tmp_path, case):
    data, message = HOSTILE[case]
    out = tmp_path / "deep" / "out"
    with pytest.raises(InputError, match=message):
        artifacts.fetch([entry(server, "/pack", data, unpack=True)], out)
    assert [name for name in left(tmp_path) if not name.endswith(".part")] == []


def test_a_link_in_the_output_is_not_followed(server, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="is a link"):
        artifacts.fetch([entry(server, "/p.zip", zipped(**{"a/b": b"1"}), unpack=True)], tmp_path / "out")
    assert left(tmp_path / "elsewhere") == []


def test_existing_files_are_kept(server, tmp_path):
    (tmp_path / "a.txt").write_text("mine")
    pack = entry(server, "/p.zip", zipped(**{"a.txt": b"theirs", "b.txt": b"b"}), unpack=True)
    single = entry(server, "/a.txt", b"theirs")
    for item in (pack, single):
        with pytest.raises(InputError, match=r"a.txt exists"):
            artifacts.fetch([item], tmp_path)
    assert (tmp_path / "a.txt").read_text() == "mine" and not (tmp_path / "b.txt").exists()
    for item in (pack, single):  # --force is for what an earlier fetch wrote
        with pytest.raises(InputError, match=r"a.txt exists .*it was not fetched, so --force does not replace it"):
            artifacts.fetch([item], tmp_path, force=True)
    assert (tmp_path / "a.txt").read_text() == "mine" and not (tmp_path / "b.txt").exists()


def test_force_replaces_what_was_fetched(server, tmp_path):
    for text in (b"one", b"two"):
        pack = entry(server, "/p.zip", zipped(**{"a.txt": text}), unpack=True)
        single = entry(server, "/b.txt", text, to="deep")
        if text == b"two":
            for item in (pack, single):
                with pytest.raises(InputError, match="remove it or give --force"):
                    artifacts.fetch([item], tmp_path)
        artifacts.fetch([pack, single], tmp_path, force=True)
        assert (tmp_path / "a.txt").read_bytes() == (tmp_path / "deep" / "b.txt").read_bytes() == text


@pytest.mark.parametrize(
    "data", [b"no archive", zipped(a=b"1" * 1000)[:60], tarred(GOOD)[:40]], ids=["none", "zip", "tar"]
)
def test_broken_archives(server, tmp_path, data):
    with pytest.raises(InputError, match=r"p.zip (is neither|can't be unpacked)"):
        artifacts.fetch([entry(server, "/p.zip", data, unpack=True)], tmp_path)
    assert not (tmp_path / "artifacts.json").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "is no list"),
        ("[", "is not readable YAML"),
        ("- {url: 'http://h/a'}", "entry 1: sha256: Field required"),
        ("- {url: 'http://h/a', sha256: abc}", "entry 1: sha256: .*pattern"),
        (f"- {{url: 'file:///etc/passwd', sha256: {'a' * 64}}}", "entry 1: url: .*http or https"),
        (f"- {{url: 'http://h/', sha256: {'a' * 64}}}", "entry 1: url: .*of a file"),
        (f"- {{url: 'http://h/a', sha256: {'a' * 64}, to: ../x}}", "entry 1: to: .*below"),
        (f"- {{url: 'http://h/a', sha256: {'a' * 64}, size: 3}}", "entry 1: size: Extra"),
    ],
)
def test_wrong_lists(tmp_path, text, message):
    (tmp_path / "list.yaml").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        artifacts.read_list(tmp_path / "list.yaml")
    assert "list.yaml" in str(caught.value)
    with pytest.raises(InputError, match="cannot be read"):
        artifacts.read_list(tmp_path / "none.yaml")
