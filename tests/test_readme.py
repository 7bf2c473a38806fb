"""The code blocks of README run from the first to the last, and its table names tests."""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.backends("tensorflow", reason="PyTorch exports no SavedModel")

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def test_code_blocks_run_in_their_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "readme"}
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), namespace)
    assert (tmp_path / "model.keras").exists()
    assert (tmp_path / "saved_model").is_dir()
    assert (tmp_path / "saved_model_of_the_layer").is_dir()


def test_every_block_names_its_language():
    # Blocks without a language do not run.
    assert set(re.findall(r"^```(\w*)$", README, flags=re.MULTILINE)) <= {
        "",
        "python",
        "sh",
        "text",
    }
    assert len(re.findall(r"^```\w", README, flags=re.MULTILINE)) * 2 == README.count("```")


def test_every_guarantee_names_its_tests():
    (section,) = re.findall(r"^## Guarantees\n(.*?)^## ", README, re.DOTALL | re.MULTILINE)
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    defined = set(re.findall(r"^ *(?:def|class) (\w+)", "".join(sources), flags=re.MULTILINE))
    for row in re.findall(r"^\| [^*\n]+ \|$", section, flags=re.MULTILINE)[1:]:
        names = re.findall(r"`((?:test_|Test)\w+|make [a-z-]+)`", row)
        assert names, row
        assert {name for name in names if not name.startswith("make")} <= defined
