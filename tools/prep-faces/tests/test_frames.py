"""Videos of known frames, made here, come out frame by frame."""

import json
import struct

import av
import numpy as np
import pytest
from PIL import Image
from prep_faces.video import decode, extract_frames, probe
from recon4d import InputError

COUNT, FPS, WIDTH, HEIGHT = 20, 10, 96, 64


def bars(index, height=HEIGHT, width=WIDTH, blur=0):
    """Frame `index`: red grows to the right, green downwards, blue with time; a bright corner at the top left."""
    ys, xs = np.mgrid[0:height, 0:width]
    image = np.stack([xs * 200 // width, ys * 200 // height, np.full_like(xs, index * 10)], -1).astype(np.uint8)
    image[: height // 4, : width // 4] = 255
    if blur == 0:
        image[height // 2 :, ::8] //= 2  # fine detail
    return image


def write_video(path, images, fps=FPS, codec="libx264", options=None, **stream_settings):
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=fps, options={"crf": "4"} if codec == "libx264" else {})
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for key, value in stream_settings.items():
            setattr(stream.codec_context, key, value)
        for image in images:
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if "colorspace" in stream_settings:
                frame = frame.reformat(format="yuv420p", dst_colorspace="itu709")
                frame.colorspace = stream_settings["colorspace"]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("clip") / "ein clip ü.mp4", [bars(i) for i in range(COUNT)])


def read(path):
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_command_writes_every_frame(run, clip, tmp_path):
    done = run("frames", clip, "--out", tmp_path / "o ü")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["frames"], result["fps"], result["width"], result["height"]) == (COUNT, FPS, WIDTH, HEIGHT)
    records = lines(tmp_path / "o ü" / "frames.jsonl")
    assert [record["index"] for record in records] == list(range(COUNT))
    assert np.allclose([record["time"] for record in records], np.arange(COUNT) / FPS, atol=1e-4)
    for i in (0, 7, COUNT - 1):
        image = read(tmp_path / "o ü" / "frames" / records[i]["name"])
        assert np.abs(image - bars(i)).mean() < 6  # what chroma subsampling and compression leave
    names = {path.name for path in (tmp_path / "o ü" / "frames").iterdir()}
    assert names == {f"{i:05d}.png" for i in range(COUNT)}
    assert json.loads((tmp_path / "o ü" / "frames.json").read_text())["result"]["source_fps"] == FPS


def test_thin_size_and_limit(clip, tmp_path):
    result = extract_frames(clip, tmp_path, fps=4, size=48, max_frames=5)
    records = lines(tmp_path / "frames.jsonl")
    # What a player shows at each quarter of a second.
    assert [record["time"] for record in records] == pytest.approx([0, 0.2, 0.5, 0.7, 1.0])
    assert (result["width"], result["height"], result["fps"]) == (48, 32, 4)
    assert read(tmp_path / "frames" / "00004.png").shape == (32, 48, 3)
    with pytest.raises(InputError, match="--fps 30 is more than the 10"):
        extract_frames(clip, tmp_path / "more", fps=30)


def test_sharpest_of_each_group(tmp_path):
    sharp = [2, 3, 7, 8]
    video = write_video(tmp_path / "v.mp4", [bars(i, blur=0 if i in sharp else 1) for i in range(11)])
    extract_frames(video, tmp_path, sharpest=3)
    times = [record["time"] for record in lines(tmp_path / "frames.jsonl")]
    assert [round(time * FPS) for time in times][:3] == [2, 3, 7] or [round(t * FPS) for t in times][:3] == [
        2,
        3,
        8,
    ]
    assert len(times) == 4  # the last group has two frames


def rotate_in_container(path, out, matrix):
    """Write the display matrix (a, b, c, d) into the mp4's track header, as phones do."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4
    position = start + 40  # version 0: flags 4, times and ids 20, reserved 8, layer .. reserved 8
    a, b, c, d = (value << 16 for value in matrix)
    data[position : position + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    out.write_bytes(data)
    return out


@pytest.mark.parametrize(
    ("matrix", "upright"),
    [
        ((1, 0, 0, 1), lambda a: a),
        ((0, 1, -1, 0), lambda a: np.rot90(a, -1)),  # "rotate 90": clockwise, as a phone held upright writes
        ((-1, 0, 0, -1), lambda a: np.rot90(a, 2)),
        ((0, -1, 1, 0), lambda a: np.rot90(a)),
        ((-1, 0, 0, 1), lambda a: a[:, ::-1]),
    ],
)
def test_display_matrix(clip, tmp_path, matrix, upright):
    turned = rotate_in_container(clip, tmp_path / "turned.mp4", matrix)
    _, image = next(decode(turned))
    assert np.abs(image.astype(int) - upright(bars(0)).astype(int)).mean() < 6
    info = probe(turned)
    assert (info.height, info.width) == upright(bars(0)).shape[:2]


def test_tagged_bt709_colors(tmp_path):
    color = np.array([200, 60, 30], np.uint8)
    video = write_video(tmp_path / "c.mp4", [np.broadcast_to(color, (64, 64, 3)).copy()] * 2, colorspace=1)
    _, image = next(decode(video))
    assert np.abs(image[32, 32].astype(int) - color).max() <= 4


def test_video_that_ends_early(run, tmp_path):
    whole = write_video(tmp_path / "w.mp4", [bars(i) for i in range(COUNT)], options={"movflags": "faststart"})
    data = whole.read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(data[: int(len(data) * 0.7)])
    done = run("frames", cut, "--out", tmp_path / "o")
    assert done.returncode == 0, done.stderr
    assert "cut.mp4" in done.stderr and "Traceback" not in done.stderr
    records = lines(tmp_path / "o" / "frames.jsonl")
    assert 0 < len(records) - 1 < COUNT and "error" in records[-1]
    assert json.loads(done.stdout)["frames"] == len(records) - 1
    again = run("frames", cut, "--out", tmp_path / "o", "--strict")
    assert again.returncode == 2 and "Traceback" not in again.stderr


def test_resumes_and_keeps_to_its_options(clip, tmp_path):
    extract_frames(clip, tmp_path / "a")
    extract_frames(clip, tmp_path / "b")
    # What a kill in the middle leaves: missing frames, a half line, a temporary file.
    for i in range(9, COUNT):
        (tmp_path / "b" / "frames" / f"{i:05d}.png").unlink()
    text = (tmp_path / "b" / "frames.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "b" / "frames.jsonl").write_text("".join(text[:9]) + text[9][:20])
    (tmp_path / "b" / "frames" / ".recon4d-4194399-abcd0123.png").write_bytes(b"half")  # no process has this number
    kept = (tmp_path / "b" / "frames" / "00003.png").stat().st_mtime_ns
    extract_frames(clip, tmp_path / "b")
    assert (tmp_path / "b" / "frames" / "00003.png").stat().st_mtime_ns == kept
    for name in ["frames.jsonl", "frames.json", *(f"frames/{i:05d}.png" for i in range(COUNT))]:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert len(list((tmp_path / "b" / "frames").iterdir())) == COUNT
    with pytest.raises(InputError, match="--force"):
        extract_frames(clip, tmp_path / "b", max_frames=3)
    extract_frames(clip, tmp_path / "b", max_frames=3, force=True)
    assert len(list((tmp_path / "b" / "frames").iterdir())) == 3


def test_bad_videos_give_one_sentence(run, clip, tmp_path):
    (tmp_path / "noise.mp4").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "empty.mp4").write_bytes(b"")
    half = clip.read_bytes()
    (tmp_path / "no index.mp4").write_bytes(half[: len(half) // 2])
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for name in ("noise.mp4", "empty.mp4", "no index.mp4", "sound.mp4", "missing.mp4"):
        with pytest.raises(InputError, match=name):
            extract_frames(tmp_path / name, tmp_path / "o")
        assert not (tmp_path / "o").exists()
    for name in (tmp_path, tmp_path / "no index.mp4"):
        done = run("frames", name, "--out", tmp_path / "o")
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
        assert not (tmp_path / "o").exists()
