"""The options in the README are those of --help."""

from pathlib import Path

import click
import pytest
from eyeball_relight.cli import main

README = Path(__file__).parents[1] / "README.md"
HEADER = "| command | option | meaning |\n| --- | --- | --- |\n"


def options_table() -> str:
    """A Markdown table of every command's options, from --help."""
    rows = []
    for name, command in main.commands.items():
        with click.Context(command, info_name=name) as context:
            records = [p.get_help_record(context) for p in command.get_params(context)]
        for option, text in filter(None, records):
            if option != "--help":
                rows.append(f"| `{name}` | `{option.replace('|', ' or ')}` | {text.replace('|', ' or ')} |\n")
    return HEADER + "".join(rows)


def test_options_table_is_that_of_help():
    table = options_table()
    assert table in README.read_text(), f"put this into {README.name}:\n\n{table}"


def test_every_command_has_help(capsys):
    for name in main.commands:
        with pytest.raises(SystemExit) as stop:
            main([name, "--help"])
        assert stop.value.code == 0 and "Usage:" in capsys.readouterr().out
