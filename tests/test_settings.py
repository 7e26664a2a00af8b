"""The settings of shipped checkpoints in recipes/settings are valid gpa.json or speechop.json content."""

from pathlib import Path

import pytest

from gpa.config import build, load_yaml
from gpa.lab.export_speechop import FREE
from gpa.models.gpa.configuration_gpa import VERSION, GPAConfig
from gpa.models.speechop.configuration_speechop import SpeechOpConfig

SETTINGS = Path(__file__).parents[1] / "recipes" / "settings"


@pytest.mark.parametrize("path", sorted(SETTINGS.glob("gpa-*.yaml")), ids=lambda path: path.stem)
def test_settings_are_valid(path: Path) -> None:
    config = GPAConfig.from_dict({"version": VERSION, **load_yaml(path)})
    assert config.name == path.stem
    assert config.sampling["asr"].temperature == 0


@pytest.mark.parametrize("path", sorted(SETTINGS.glob("speechop-*.yaml")), ids=lambda path: path.stem)
def test_speechop_settings_are_valid(path: Path) -> None:
    settings = load_yaml(path)
    assert set(settings) <= set(FREE) and settings["about"]["name"] == path.stem
    assert build(SpeechOpConfig, settings).sampler.steps >= 8
