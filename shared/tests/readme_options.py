"""What a tool's README says of its options must be what --help says."""

from pathlib import Path

import click
import pytest


def tables(main: click.Group, tool: str) -> str:
    """A Markdown table of every command's arguments and options."""
    blocks = []
    for name, command in main.commands.items():
        with click.Context(command, info_name=name, max_content_width=200) as context:
            records = filter(None, (p.get_help_record(context) for p in command.get_params(context)))
            arguments = [p.make_metavar(context) for p in command.params if isinstance(p, click.Argument)]
        cells = [[cell.replace("|", " or ") for cell in record] for record in records if record[0] != "--help"]
        first = (command.help or "").split("\n\n")[0].replace("\n", " ")
        rows = [f"| `{option}` | {text} |" for option, text in cells]
        title = f"**`{' '.join([tool, name, *arguments])}`**: {first}"
        blocks.append("\n".join([title, "", "| option | |", "| --- | --- |", *rows]))
    return "\n\n".join(blocks) + "\n"


def check(main: click.Group, readme: Path) -> None:
    """Every option stands in the README, and every command's --help works."""
    text = tables(main, readme.parent.name)
    assert text in readme.read_text(), f"put this into {readme}:\n\n{text}"
    for name in main.commands:
        with pytest.raises(SystemExit) as stop:
            main([name, "--help"])
        assert stop.value.code == 0
