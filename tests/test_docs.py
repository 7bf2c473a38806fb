"""README and the documentation: their code runs, their links lead somewhere, their tests exist."""

import json
import re
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.backends("tensorflow", reason="PyTorch exports no SavedModel")

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if "_build" not in path.parts
}
SERVING = "docs/recipes/serving.md"  # Runs as a fixture.
BLOCK = re.compile(r"^```(?:\{code-cell\} )?python\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)


def run(page):
    """Runs the code blocks of a page from the first to the last, and returns their names."""
    namespace = {"__name__": "page"}
    for block in BLOCK.findall(PAGES[page]):
        code = re.sub(r"^[%:].*", "", block, flags=re.MULTILINE)  # Magics and tags of notebooks.
        exec(compile(code, page, "exec"), namespace)
    return namespace


def run_only(page):
    """As `run`; the names cannot leave the process."""
    run(page)


@pytest.fixture(scope="module")
def serving(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(tmp_path_factory.mktemp("serving"))
        return run(SERVING)


@pytest.mark.parametrize("page", sorted({*PAGES} - {SERVING}))
def test_code_blocks_run_in_their_order(page, tmp_path, monkeypatch):
    if "import keras_tuner" in PAGES[page]:
        pytest.importorskip("keras_tuner", reason="It would install a Keras of its own.")
    monkeypatch.chdir(tmp_path)
    if "MirroredStrategy()" in PAGES[page]:
        # TensorFlow's collectives interfere within one process.
        with get_context("spawn").Pool(1) as pool:
            pool.apply(run_only, (page,))
    else:
        run(page)


def test_both_sides_of_the_diff_of_readme_train(tmp_path, monkeypatch):
    (diff,) = re.findall(r"^```diff\n(.*?)^```", PAGES["README.md"], flags=re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    names = run("README.md")
    for side in "-+":
        lines = [line[1:] for line in diff.splitlines() if line[:1] in ("", " ", side)]
        exec(compile("\n".join(lines), "README.md", "exec"), names)
    assert set(names["model"].weighting.sigmas()) == {"depth", "classes"}


def test_the_rest_request_has_the_names_and_shapes_of_the_signature(serving):
    request = json.loads(json.dumps(serving["request"]))
    signature = serving["loaded"].signatures[request["signature_name"]]
    expected = signature.structured_input_signature[1]
    rows = request["instances"]
    columns = {name: np.array([row[name] for row in rows], "float32") for name in expected}
    assert all(set(row) == set(expected) for row in rows)
    for name, tensor in expected.items():
        assert tensor.shape.is_compatible_with(columns[name].shape)

    answer = {name: value.numpy() for name, value in signature(**columns).items()}
    predicted = serving["model"].predictive_model().predict(columns["x"], verbose=0)
    assert set(answer) == set(predicted)
    for name, value in predicted.items():
        np.testing.assert_allclose(answer[name], value, rtol=1e-5, atol=1e-6)


def test_the_shown_signature_and_response_are_those_of_the_model(serving):
    page = PAGES[SERVING]
    signature = serving["loaded"].signatures["serving_default"]
    shown = dict(re.findall(r"outputs\['(\w+)'\].*?shape: \(-1, (\d)\)", page, flags=re.DOTALL))
    assert shown == {
        name: str(tensor.shape[1]) for name, tensor in signature.structured_outputs.items()
    }
    (response,) = re.findall(r"^\{\"predictions\".*?^\]\}", page, flags=re.DOTALL | re.MULTILINE)
    for row in json.loads(response)["predictions"]:
        assert {name: str(len(values)) for name, values in row.items()} == shown


def test_every_format_answers_as_the_predictive_model(serving):
    expected = serving["model"].predictive_model().predict(serving["x"][:2], verbose=0)
    answers = [serving["answer"], serving["on_device"], serving["with_onnx"]]
    answers.append({min(key.names, key=len): v for key, v in serving["with_openvino"].items()})
    for answer in answers:
        for name, value in expected.items():
            np.testing.assert_allclose(answer[name], value, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_names_its_language(page):
    # Blocks without a language do not run.
    opened = re.findall(r"^(`{3,}|:{3,})(\S*).*$", PAGES[page], flags=re.MULTILINE)
    languages = [language for _, language in opened]
    assert languages[1::2] == [""] * (len(languages) // 2)
    known = {"python", "sh", "text", "diff"}
    assert all(each in known or each.startswith("{") for each in languages[::2])


def test_links_and_pictures_of_readme_exist():
    # Sphinx checks those of the documentation.
    for target in re.findall(r"\]\(([^)#]+)", PAGES["README.md"]):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_readme_is_short():
    assert PAGES["README.md"].count("\n") <= 150


def test_every_guarantee_names_its_tests():
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    defined = set(re.findall(r"^ *(?:def|class) (\w+)", "".join(sources), flags=re.MULTILINE))
    rows = re.findall(r"^\| [^*\n]+ \|$", PAGES["docs/reliability.md"], flags=re.MULTILINE)[1:]
    assert rows
    for row in rows:
        names = re.findall(r"`((?:test_|Test)\w+|make [a-z-]+)`", row)
        assert names, row
        assert {name for name in names if not name.startswith("make")} <= defined
