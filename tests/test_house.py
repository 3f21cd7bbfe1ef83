"""The house in order: no circles, no imports between tools; each package declares what it imports and who it is."""

import ast
import re
import runpy
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FILES = [*ROOT.glob("tools/*/pyproject.toml"), ROOT / "shared/pyproject.toml"]
PACKAGES = {path.parent.name: path.parent for path in FILES}
# import name -> distribution, where the names differ
DISTRIBUTIONS = {
    "cv2": "opencv-python-headless",
    "PIL": "pillow",
    "yaml": "pyyaml",
    "sklearn": "scikit-learn",
    "skimage": "scikit-image",
    "dlib": "dlib-bin",
    "pytorch3d": "easypytorch3d",
    "nvdiffrast": "diffrp-nvdiffrast",
}


def project(folder: Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text())["project"]


def name_of(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


def test_imports_form_no_circles_and_tools_know_only_the_library():
    found = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_declares_what_it_imports(name):
    folder = PACKAGES[name]
    declared = project(folder)
    extras = declared.get("optional-dependencies", {})
    known = {name_of(text) for text in [*declared["dependencies"], *(t for group in extras.values() for t in group)]}
    (source,) = [path for path in (folder / "src").iterdir() if path.is_dir()]
    asked = {}
    for path in source.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            else:
                modules = [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            for module in modules:
                asked.setdefault(module.split(".")[0], path.relative_to(ROOT))
    asked = {top: path for top, path in asked.items() if top not in sys.stdlib_module_names and top != source.name}
    missing = {
        top: str(path)
        for top, path in asked.items()
        if DISTRIBUTIONS.get(top, top.lower().replace("_", "-")) not in known
    }
    assert not missing


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_says_who_it_is(name):
    folder = PACKAGES[name]
    declared = project(folder)
    assert (folder / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert declared["authors"] and declared["urls"] and declared["classifiers"]
    assert f"## {declared['version']}" in (folder / "CHANGELOG.md").read_text()
    assert metadata.version(declared["name"]) == declared["version"]
    for text in declared["dependencies"]:
        pinned = "==" in text and name_of(text) != "mtcnn"  # a file of that very version is used
        assert not pinned, f"{text}: bounds in packages, pins in the workspace"


def test_modules_of_the_library_are_its_attributes():
    words = "import recon4d; recon4d.cameras.look_at; recon4d.__version__; recon4d.nothing"
    found = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True)
    assert "module recon4d has no attribute nothing" in found.stderr


def test_what_a_change_asks_ci_for():
    namespace = runpy.run_path(str(ROOT / ".ci" / "changed"))
    wanted = namespace["wanted"]
    everything = ["recon4d", *sorted(set(PACKAGES) - {"shared"})]
    assert wanted(None) == wanted(["shared/src/recon4d/cli.py"]) == wanted(["pyproject.toml"]) == (everything, True)
    assert wanted(["tools/flux4d/src/flux4d/cli.py"]) == (["flux4d"], True)
    assert wanted(["README.md"]) == wanted(["bench/mesh.py"]) == wanted(["docs/formats.md"]) == ([], True)
    assert wanted(["CONTRIBUTING.md"]) == wanted([]) == ([], False)


def test_ci_runs_what_it_should():
    """The workflow names systems, versions and checks; its permissions, times and concurrency are bounded."""
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert workflow["permissions"] == {"contents": "read"} and workflow["concurrency"]["cancel-in-progress"]
    assert all("timeout-minutes" in job for job in workflow["jobs"].values())
    systems = workflow["jobs"]["package"]["strategy"]["matrix"]["system"]
    assert systems == ["linux-3.11", "linux-3.12", "linux-3.13", "macos-3.12", "windows-3.12"]
    words = (ROOT / ".github/workflows/ci.yml").read_text()
    for command in ("ruff check", "ruff format --check", "mypy --strict", ".ci/wheels", "lint-imports", "sphinx-build"):
        assert command in words
