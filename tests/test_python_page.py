"""docs/python.md runs as it stands."""

import contextlib
import io
import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "python.md"


def test_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert len(blocks) == 4
    said, names = io.StringIO(), {}
    with contextlib.redirect_stdout(said):
        for number, block in enumerate(blocks):
            exec(compile(block, f"{PAGE.name}, block {number + 1}", "exec"), names)
    assert names["trained"].images == 150 and names["trained"].gaussians > 5000
    assert (tmp_path / "output/ada/first/render.mp4").stat().st_size > 1000
    assert list((tmp_path / "output/ada/first/export").glob("*.ply"))
    assert names["found"].figures["mean_px"] < 1.5 and len(names["found"].track) == 24
    assert (tmp_path / "street/scene.ply").is_file()
    assert names["alpha"].max() > 0.5
    print(said.getvalue())
