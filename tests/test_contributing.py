"""The likelihood of CONTRIBUTING passes the checks that stand beside it."""

import re
from pathlib import Path

import pytest

GUIDE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_the_likelihood_of_the_guide_is_scipys():
    pytest.importorskip("scipy")
    blocks = re.findall(r"^```python\n(.*?)^```", GUIDE, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 3
    exec(compile("".join(blocks), "CONTRIBUTING.md", "exec"), {"__name__": "contributing"})


def test_every_command_of_the_guide_is_a_target_of_make():
    makefile = (Path(__file__).parents[1] / "Makefile").read_text(encoding="utf-8")
    commands = set(re.findall(r"^make ([a-z-]+)", GUIDE, flags=re.MULTILINE))
    assert commands
    assert commands <= set(re.findall(r"^([a-z-]+):.*##", makefile, flags=re.MULTILINE))
