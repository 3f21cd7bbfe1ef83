"""The options in the README are those of --help."""

from pathlib import Path

import readme_options
from gaussian_avatar.cli import main


def test_options_are_those_of_help():
    readme_options.check(main, Path(__file__).parents[1] / "README.md")
