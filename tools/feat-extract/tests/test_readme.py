"""The options in the README are those of --help, its settings those of the config."""

from pathlib import Path

import click
from feat_extract.cli import main
from feat_extract.config import Config

README = Path(__file__).parents[1] / "README.md"
HEADER = "| command | option | meaning |\n| --- | --- | --- |\n"


def options_table() -> str:
    """A Markdown table of every command's options, from --help."""
    rows = []
    for name, command in main.commands.items():
        with click.Context(command, info_name=name, max_content_width=200) as context:
            records = [p.get_help_record(context) for p in command.get_params(context)]
        for option, text in filter(None, records):
            if option != "--help":
                rows.append(f"| `{name}` | `{option.replace('|', ' or ')}` | {text.replace('|', ' or ')} |\n")
    return HEADER + "".join(rows)


def test_options_table_is_that_of_help():
    table = options_table()
    assert table in README.read_text(), f"put this into {README.name}:\n\n{table}"


def test_every_setting_is_named():
    text = README.read_text()
    for name, field in Config.model_fields.items():
        assert f"`{name}`" in text, name
        for key in getattr(field.annotation, "model_fields", {}):
            assert f"`{key}`" in text, f"{name}.{key}"
