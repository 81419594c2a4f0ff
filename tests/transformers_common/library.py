"""
The tests of transformers under the name `transformers_tests`: their own name, `tests`, is a package of this repository.
They come from the sdist that `make test-transformers` unpacks, or from the folder that the environment variable
TRANSFORMERS_TESTS names. Without them, importing this module skips the test module that imports it.
"""

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import transformers

# What the common tests import from subfolders, which the sdist leaves out. The mixins are tests of torch.export and of
# left-to-right decoding; the keyword arguments are read for configurations that have no sub-configuration.
NOT_IN_THE_SDIST = {
    "exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    "utils.test_configuration_utils": {"config_common_kwargs": {}},
}


def _unpacked_tests() -> Path:
    version = transformers.__version__
    root = os.environ.get("TRANSFORMERS_TESTS") or Path(sys.prefix, "transformers-tests", f"transformers-{version}")
    folder = Path(root, "tests")
    if not (folder / "test_modeling_common.py").is_file():
        pytest.skip(
            f"the tests of transformers {version} are not in {folder}: run `make test-transformers`",
            allow_module_level=True,
        )
    pytest.importorskip("parameterized", reason="transformers' tests need parameterized: run `make test-transformers`")
    return folder


def _register(name: str, **attributes) -> None:
    module = sys.modules[f"transformers_tests{name}"] = ModuleType(f"transformers_tests{name}")
    vars(module).update(attributes)


def _import_from(name: str, attribute: str) -> type:
    return getattr(importlib.import_module(f"transformers_tests.{name}"), attribute)


_tests = _unpacked_tests()
# Left out of the sdist, too, and read by test_configuration_common.py.
(_tests / "__init__.py").touch()
_register("", __path__=[str(_tests)])
for _name, _attributes in NOT_IN_THE_SDIST.items():
    _register(f".{_name.split('.')[0]}", __path__=[])
    _register(f".{_name}", **_attributes)

# Tests that ask for a process of their own would be deselected there, where `-m slow` is not given.
os.environ.setdefault("_INSIDE_SUB_PROCESS", "1")

ConfigTester = _import_from("test_configuration_common", "ConfigTester")
ModelTesterMixin = _import_from("test_modeling_common", "ModelTesterMixin")
TrainingTesterMixin = _import_from("test_training_mixin", "TrainingTesterMixin")
