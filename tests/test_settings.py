"""The settings of shipped checkpoints in recipes/settings are valid gpa.json content."""

from pathlib import Path

import pytest

from gpa.config import load_yaml
from gpa.models.gpa.configuration_gpa import VERSION, GPAConfig

SETTINGS = sorted((Path(__file__).parents[1] / "recipes" / "settings").glob("*.yaml"))


@pytest.mark.parametrize("path", SETTINGS, ids=lambda path: path.stem)
def test_settings_are_valid(path):
    config = GPAConfig.from_dict({"version": VERSION, **load_yaml(path)})
    assert config.name == path.stem
    assert config.sampling["asr"].temperature == 0
