"""The options in the README are those of --help."""

from pathlib import Path

import click
import pytest
from flame_encoder.cli import main

README = Path(__file__).parents[1] / "README.md"
MARK = "<!-- options: made from --help -->"


def options_table() -> str:
    """Markdown of every command's --help, in the order of the commands."""
    blocks = []
    for name, command in main.commands.items():
        with click.Context(command, info_name=f"flame-encoder {name}", max_content_width=110) as context:
            blocks.append(f"```\n{command.get_help(context)}\n```\n")
    return "\n".join(blocks)


def test_readme_options_match_help():
    before, _, after = README.read_text().partition(MARK)
    assert before and after.strip() == options_table().strip(), (
        "the options in tools/flame-encoder/README.md differ from --help; replace them with:\n" + options_table()
    )
    for name in main.commands:
        with pytest.raises(SystemExit) as stop:
            main([name, "--help"])
        assert stop.value.code == 0
