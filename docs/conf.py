"""The documentation site: uv run --all-packages --group docs sphinx-build -W -b html docs docs/_build"""

import posixpath
import re
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOOLS = sorted(path.parent.name for path in ROOT.glob("tools/*/pyproject.toml"))

project = "recon4d"
copyright = "the recon4d authors, Apache-2.0"
release = metadata.version("recon4d")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "images/README.md"]
html_theme = "furo"
html_title = f"recon4d {release}"
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_inherit_docstrings = False
suppress_warnings = ["ref.python"]  # attributes of two classes may have one name
autodoc_default_options = {"members": True, "undoc-members": False}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
# Modules whose heavy or optional needs are not asked for here.
autodoc_mock_imports = ["gsplat", "nvdiffrast"]


def page_of(target: str) -> str | None:
    """The site's page for a file of the repository, None where it has none."""
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    name = posixpath.normpath(target).removesuffix("/README.md")
    if name == "shared" or name in {f"tools/{tool}" for tool in TOOLS}:
        return f"tools/{'library' if name == 'shared' else name.removeprefix('tools/')}.md"
    return None


def with_site_links(text: str, folder: str, page: str) -> str:
    """Links that are right in the repository, as they are right on the site: to its pages, else only their words.

    Args:
        folder: where the text lies in the repository. page: the page it becomes.
    """

    def link(found: re.Match) -> str:
        mark, words, target = found.groups()
        if re.match(r"[a-z]+:|#", target):
            return found[0]
        path, _, anchor = target.partition("#")
        goal = page_of(posixpath.normpath(posixpath.join(folder, path)))
        if goal is None:
            return words
        relative = posixpath.relpath(goal, posixpath.dirname(page) or ".")
        return f"{mark}[{words}]({relative}{'#' + anchor if anchor else ''})"

    return re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", link, text)


def read_page(app, docname: str, source: list[str]) -> None:
    """A tool's page is its README; links of all pages are the site's."""
    readmes = {f"tools/{tool}": ROOT / "tools" / tool for tool in TOOLS} | {"tools/library": ROOT / "shared"}
    if docname in readmes:
        folder = readmes[docname]
        app.env.note_dependency(str(folder / "README.md"))
        source[0] = with_site_links((folder / "README.md").read_text(), str(folder.relative_to(ROOT)), docname)
    else:
        source[0] = with_site_links(source[0], posixpath.join("docs", posixpath.dirname(docname)), docname)


def plain_docstring(app, what, name, subject, options, lines: list[str]) -> None:
    """Docstrings are plain text with `code` between backticks: say so to reStructuredText."""
    text = "\n".join(lines)
    parts = re.split(r"(`[^`]+`)", text)
    for i, part in enumerate(parts):
        if part.startswith("`"):
            parts[i] = f"`{part}`\\ " if not re.match(r"\s|$", "".join(parts[i + 1 : i + 2])) else f"`{part}`"
        else:
            parts[i] = re.sub(r"([*|]|(?<=\w)_(?=\W|$))", r"\\\1", part)
    lines[:] = "".join(parts).split("\n")


def setup(app) -> None:
    app.connect("source-read", read_page)
    app.connect("autodoc-process-docstring", plain_docstring, priority=100)
