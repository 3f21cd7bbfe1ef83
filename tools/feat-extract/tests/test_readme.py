"""The options in the README are those of --help, its settings those of the config."""

from pathlib import Path

import readme_options
from feat_extract.cli import main
from feat_extract.config import Config

README = Path(__file__).parents[1] / "README.md"


def test_options_are_those_of_help():
    readme_options.check(main, README)


def test_every_setting_is_named():
    text = README.read_text()
    for name, field in Config.model_fields.items():
        assert f"`{name}`" in text, name
        for key in getattr(field.annotation, "model_fields", {}):
            assert f"`{key}`" in text, f"{name}.{key}"
