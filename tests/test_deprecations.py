"""The package uses no deprecated function, when it is imported or in any test.

`filterwarnings` in setup.cfg turns each such warning into an error, in every test.
"""

import subprocess
import sys

import pytest

WARN = "import warnings; warnings.warn('old', DeprecationWarning)"

IMPORT_ALL = """
import importlib, pkgutil, warnings
warnings.filterwarnings("error", category=DeprecationWarning, module="keras_uncertainty_mtl")
import keras_uncertainty_mtl as package
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    importlib.import_module(module.name)
    print(module.name)
"""


def test_importing_any_module_warns_of_nothing():
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL], check=True, stdout=subprocess.PIPE, text=True
    )
    imported = done.stdout.split()
    for name in ("weighting", "model", "calibration", "plotting"):
        assert f"keras_uncertainty_mtl.{name}" in imported


@pytest.mark.parametrize("module", ["keras_uncertainty_mtl", "keras_uncertainty_mtl.weighting"])
def test_a_warning_in_the_package_fails_a_test(module):
    with pytest.raises(DeprecationWarning, match="old"):
        exec(WARN, {"__name__": module})


def test_a_warning_elsewhere_fails_no_test():
    with pytest.warns(DeprecationWarning, match="old"):
        exec(WARN, {"__name__": "keras"})
