"""The options in the README are those of --help."""

from pathlib import Path

import click
from prep_faces.cli import main

README = Path(__file__).parents[1] / "README.md"
MARK = "<!-- options: made from --help -->"


def options_table() -> str:
    """A Markdown table per command, from its Click parameters, in the order of the commands."""
    blocks = []
    for name, command in main.commands.items():
        with click.Context(command, info_name=name, max_content_width=200) as context:
            records = [parameter.get_help_record(context) for parameter in command.get_params(context)]
        rows = [f"| `{option}` | {help_text} |" for option, help_text in filter(None, records) if option != "--help"]
        arguments = " ".join(p.make_metavar(context) for p in command.params if isinstance(p, click.Argument))
        head = f"**`prep-faces {name} {arguments}`**: {command.help.splitlines()[0]}".replace(" `**", "`**")
        blocks.append("\n".join([head, "", "| option | |", "| --- | --- |", *rows]))
    return "\n\n".join(blocks)


def test_readme_options_match_help():
    before, _, after = README.read_text().partition(MARK)
    assert before and after.strip() == options_table().strip(), (
        "the options in tools/prep-faces/README.md differ from --help; replace them with:\n" + options_table()
    )
