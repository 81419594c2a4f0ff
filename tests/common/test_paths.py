"""Files of `configuration/`, found or named."""

import pytest

from modeling_yan.common.paths import configuration_path

from ..helpers import ROOT


def test_files_are_found_in_the_checkout():
    assert configuration_path("tasks", "e2e_nlg.yaml") == ROOT / "configuration" / "tasks" / "e2e_nlg.yaml"


def test_what_is_not_there_is_answered_with_what_is():
    with pytest.raises(FileNotFoundError, match=r"no tasks/x\.yaml.*e2e_nlg\.yaml.*squad\.yaml"):
        configuration_path("tasks", "x.yaml")
