"""Videos as phones and players have them: HDR, edit lists, clocks of all kinds. Each is made here."""

import json
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from hdr_signals import hlg, pq
from prep_faces.video import decode, extract_frames, probe
from recon4d import InputError

FPS = 10


def numbered(index):
    """A frame whose grey says which one it is."""
    return np.full((64, 96, 3), 20 + 10 * index, np.uint8)


def numbers(frames):
    return [round((float(image.mean()) - 20) / 10) for _, image in frames]


def write(path, times, clock=Fraction(1, 1000), last=None):
    """A clip of numbered frames at `times` (seconds), the last of which may stay for `last` seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "4", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.time_base = clock
        packets = []
        for index, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(numbered(index), format="rgb24")
            frame.pts, frame.time_base = round(time / clock), clock
            packets += stream.encode(frame)
        packets += stream.encode()
        if last is not None:
            packets[-1].duration = round(last / packets[-1].time_base)
        for packet in packets:
            container.mux(packet)
    return path


@pytest.mark.parametrize(("name", "signal", "transfer"), [("PQ", pq, 16), ("HLG", hlg, 18)])
def test_hdr(name, signal, transfer, run, portrait, tmp_path):
    value = portrait[:256, :256] / 255
    light = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    # BT.2087-0, M2, and the 203 cd/m2 that BT.2408 gives white.
    wide = light @ np.array([[0.6274, 0.0691, 0.0164], [0.3293, 0.9195, 0.0880], [0.0433, 0.0114, 0.8956]])
    coded = np.rint(np.clip(signal(wide * 203), 0, 1) * 65535).astype(np.uint16)
    with av.open(str(tmp_path / "phone.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "4"})
        stream.width, stream.height, stream.pix_fmt = 256, 256, "yuv420p10le"
        colours = stream.codec_context
        colours.colorspace, colours.color_trc, colours.color_primaries, colours.color_range = 9, transfer, 9, 1
        for _ in range(2):
            frame = av.VideoFrame.from_ndarray(coded, format="rgb48le")
            frame = frame.reformat(format="yuv420p10le", dst_colorspace=9, dst_color_range=1)
            frame.colorspace, frame.color_trc, frame.color_primaries = 9, transfer, 9
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    done = run("frames", tmp_path / "phone.mp4", "--out", tmp_path / "o")
    assert done.returncode == 0
    assert done.stderr.count(f"phone.mp4 is HDR ({name}); it is tone-mapped to sRGB") == 1
    (_, image), *_ = decode(tmp_path / "phone.mp4")
    skin = (slice(100, 160), slice(115, 170))  # of the face
    error = image[skin].astype(float) - portrait[:256, :256][skin]
    assert np.abs(error.mean((0, 1))).max() < 1  # no cast
    assert np.median(np.abs(error)) < 3
    assert json.loads(done.stdout)["errors"] == []


def test_edit_list(run, tmp_path):
    """A clip trimmed in the phone keeps its packets; from frame 6 (no key frame) ten are to be shown."""
    write(tmp_path / "whole.mp4", np.arange(20) / FPS)
    data = bytearray((tmp_path / "whole.mp4").read_bytes())
    place = data.index(b"elst") + 12
    _, first = struct.unpack(">ii", data[place : place + 8])
    clock = struct.unpack(">I", data[data.index(b"mdhd") + 16 :][:4])[0]
    data[place : place + 8] = struct.pack(">ii", 1000, first + 6 * clock // FPS)  # milliseconds; the track's clock
    (tmp_path / "trimmed.mp4").write_bytes(data)
    done = run("frames", tmp_path / "trimmed.mp4", "--out", tmp_path / "o", "--strict")
    assert done.returncode == 0 and done.stderr == ""
    shown = list(decode(tmp_path / "trimmed.mp4"))
    assert numbers(shown) == list(range(6, 16))
    assert [time for time, _ in shown] == pytest.approx(np.arange(10) / FPS, abs=1e-3)
    assert probe(tmp_path / "trimmed.mp4").frames == 10


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".ts"])
def test_clips_of_any_container_start_at_zero_and_are_whole(suffix, tmp_path):
    shown = list(decode(write(tmp_path / f"a{suffix}", 2 + np.arange(12) / FPS, Fraction(1, FPS))))
    assert numbers(shown) == list(range(12))
    assert [time for time, _ in shown] == pytest.approx(np.arange(12) / FPS, abs=2e-3)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_last_frame_that_stays_is_no_end_too_early(suffix, tmp_path):
    assert numbers(decode(write(tmp_path / f"a{suffix}", np.arange(5) / FPS, last=6))) == list(range(5))


def test_a_rate_that_is_nearly_the_clips_own(tmp_path):
    write(tmp_path / "a.mp4", np.arange(20) / 29.97, Fraction(1001, 30000), last=1 / 29.97)
    result = extract_frames(tmp_path / "a.mp4", tmp_path, fps=30)
    assert (result["frames"], result["notes"]) == (20, [])
    assert result["fps"] == pytest.approx(29.97, abs=1e-3)


def test_frames_that_a_phone_dropped(run, tmp_path):
    times = [k / FPS for k in range(20) if k not in (7, 13)]
    write(tmp_path / "a.mp4", times)
    done = run("frames", tmp_path / "a.mp4", "--out", tmp_path / "all")
    assert "frames of a.mp4 are up to 0.2 s apart; --fps 10 takes them at a steady rate" in done.stderr
    assert json.loads(done.stdout)["frames"] == 18
    done = run("frames", tmp_path / "a.mp4", "--out", tmp_path / "steady", "--fps", FPS)
    assert done.returncode == 0, done.stderr
    assert "2 of 20 frames repeat the one before" in done.stderr
    records = [json.loads(line) for line in (tmp_path / "steady" / "frames.jsonl").read_text().splitlines()]
    shown = np.array([record["time"] for record in records])
    at = np.arange(20) / FPS
    assert (shown <= at + 2e-3).all() and (shown > at - 1.5 / FPS).all()
    with pytest.raises(InputError, match=r"--fps 12 is more than the 10 of .*a\.mp4"):
        extract_frames(tmp_path / "a.mp4", tmp_path / "more", fps=12)
