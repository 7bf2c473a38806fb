"""A service of an exported model answers with distributions, and outlives broken requests."""

import itertools
import json
import re
import socket
import subprocess
import sys
import time
from contextlib import closing
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import keras
import numpy as np
import pytest

from examples.serving import PREDICT, check_serving, predictions, service
from keras_uncertainty_mtl import Categorical, Laplace, MultiTaskModel

pytestmark = pytest.mark.backends("tensorflow", reason="TensorFlow serves the SavedModel")

ROOT = Path(__file__).parents[1]
X = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
TIMEOUT = 60  # in seconds, for each answer

IMPORT = """
import examples.serve
for module in ("keras", "keras_uncertainty_mtl"):
    try:
        __import__(module)
    except ImportError as error:
        print(error)
"""


def test_the_serving_process_can_import_neither_keras_nor_the_package():
    run = subprocess.run(
        [sys.executable, "-c", IMPORT], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    assert re.findall("import of (.*) halted", run.stdout) == ["keras", "keras_uncertainty_mtl"]


def test_a_saved_model_that_disagrees_ends_the_run(tmp_path):
    image = keras.Input((2, 2, 1))
    flat = keras.layers.Flatten()(image)
    outputs = {"ink": keras.layers.Dense(1)(flat), "kind": keras.layers.Dense(3)(flat)}
    model = keras.Model(image, outputs)
    model.export(tmp_path / "saved_model", verbose=False)
    images = np.ones((3, 2, 2, 1), "float32")
    check_serving(model, tmp_path / "saved_model", images)

    model.set_weights([1.01 * weight for weight in model.get_weights()])
    with pytest.raises(SystemExit, match="disagrees"):
        check_serving(model, tmp_path / "saved_model", images)
    with pytest.raises(SystemExit, match="cannot be served"):
        check_serving(model, tmp_path / "nothing here", images)


def request(body=b"", method="POST", path=PREDICT, length=None, headers=""):
    length = len(body) if length is None else length
    return f"{method} {path} HTTP/1.1\r\nContent-Length: {length}\r\n{headers}\r\n".encode() + body


def of_json(body):
    return request(body.encode())


def of_row(numbers):
    return of_json(f'{{"instances": [[1, 2, 3, {numbers}]]}}')


NO_LENGTH = f"POST {PREDICT} HTTP/1.1\r\n"
BROKEN = {
    "no JSON": (400, of_json("instances=1")),
    "half of a JSON": (400, of_json('{"instances": [[1, 2,')),
    "an empty body": (400, request()),
    "a body that ends early": (400, request(b'{"instances"', length=99)),
    "no UTF-8": (400, request(b'{"instances": "\xff"}')),
    "a list": (400, of_json("[[1, 2, 3, 4]]")),
    "another key": (400, of_json('{"examples": [[1, 2, 3, 4]]}')),
    "both forms": (400, of_json('{"instances": [[1, 2, 3, 4]], "inputs": [[1, 2, 3, 4]]}')),
    "another signature": (400, of_json('{"signature_name": "x", "instances": [[1, 2, 3, 4]]}')),
    "a signature alone": (400, of_json('{"signature_name": "serving_default"}')),
    "an unknown column": (400, of_json('{"inputs": {"x": [[1, 2, 3, 4]], "y": [1]}}')),
    "no columns": (400, of_json('{"inputs": {}}')),
    "no rows": (400, of_json('{"inputs": {"x": []}}')),
    "a column of a number": (400, of_json('{"inputs": {"x": 1}}')),
    "a column of null": (400, of_json('{"inputs": null}')),
    "a key too many": (400, of_json('{"instances": [[1, 2, 3, 4]], "more": 1}')),
    "instances in no list": (400, of_json('{"instances": {"x": [1, 2, 3, 4]}}')),
    "no instances": (400, of_json('{"instances": []}')),
    "too many instances": (400, of_json(json.dumps({"instances": [[1, 2, 3, 4]] * 1025}))),
    "a missing input": (400, of_json('{"instances": [{"x": [1, 2, 3, 4]}, {}]}')),
    "an unknown input": (400, of_json('{"instances": [{"x": [1, 2, 3, 4], "y": 1}]}')),
    "instances of two forms": (400, of_json('{"instances": [[1, 2, 3, 4], {"x": [1, 2, 3, 4]}]}')),
    "a short row": (400, of_json('{"instances": [[1, 2, 3]]}')),
    "an empty row": (400, of_json('{"instances": [[]]}')),
    "a scalar": (400, of_json('{"instances": [1]}')),
    "an axis too many": (400, of_json('{"instances": [[[1, 2, 3, 4]]]}')),
    "rows of two lengths": (400, of_json('{"instances": [[1, 2, 3, 4], [1, 2, 3]]}')),
    "100 axes": (400, of_json(f'{{"instances": {"[" * 100 + "]" * 100}}}')),
    "100,000 axes": (400, of_json("[" * 100_000)),
    "a string": (400, of_row('"4"')),
    "null": (400, of_row("null")),
    "true": (400, of_row("true")),
    "an object": (400, of_row("{}")),
    "NaN": (400, of_row("NaN")),
    "-Infinity": (400, of_row("-Infinity")),
    "a number above float64": (400, of_row("1e999")),
    "a number above float32": (400, of_row("1e39")),
    "an integer above float64": (400, of_row("1" + 400 * "0")),
    "an integer of 5,000 digits": (400, of_row(5000 * "1")),
    "a number too large for the network": (422, of_row("3.4e38")),
    "a wrong method": (405, request(method="PUT")),
    "no method of HTTP": (405, request(method="FROBNICATE")),
    "GET of predictions": (405, request(method="GET")),
    "GET of a wrong path": (404, request(method="GET", path="/etc/passwd")),
    "POST to a wrong path": (404, request(path="/v1/models/other:predict")),
    "no length": (411, f"{NO_LENGTH}\r\n".encode()),
    "a chunked body": (411, f"{NO_LENGTH}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n".encode()),
    "a negative length": (411, request(length=-1)),
    "a length that is too large": (413, request(length=10**12)),
    "a body that is too large": (413, request(b" " * (17 * 2**20))),
    "a path that is too long": (414, request(path="/" + 70_000 * "a")),
    "too many headers": (431, request(headers=200 * "A: b\r\n")),
    "no HTTP": (400, b"\x16\x03\x01\x02\x00 nonsense of more words\r\n\r\n"),
    "HTTP of the future": (400, f"POST {PREDICT} HTTP/9.9\r\n\r\n".encode()),
}


def answer_to(port, message):
    with socket.create_connection(("127.0.0.1", port), TIMEOUT) as connection:
        connection.sendall(message)
        connection.shutdown(socket.SHUT_WR)
        response = HTTPResponse(connection)
        response.begin()
        return response.status, json.load(response)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    x = keras.Input((4,), name="x")
    outputs = {"depth": keras.layers.Dense(1)(x), "kind": keras.layers.Dense(3)(x)}
    tasks = {"depth": Laplace(initial_sigma=2.0), "kind": Categorical(initial_sigma=0.5)}
    model = MultiTaskModel(x, outputs, tasks).predictive_model()
    path = tmp_path_factory.mktemp("serving") / "saved_model"
    model.export(path, verbose=False)
    with service(path) as port:
        yield port, model.predict(X, verbose=0)


def test_a_service_answers_900_requests_with_distributions_and_refuses_100(served):
    port, expected = served
    rng = np.random.default_rng(0)
    is_broken = rng.permutation(np.arange(1000) < 100)
    kinds = itertools.cycle(BROKEN)
    connection = HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    with closing(connection):
        for broken in is_broken:
            if broken:
                status, message = BROKEN[kind := next(kinds)]
                received, answer = answer_to(port, message)
                assert (received, [*answer]) == (status, ["error"]), (kind, answer)
                continue
            rows = rng.integers(len(X), size=rng.integers(1, 4))
            instances = (
                X[rows].tolist()
                if rng.random() < 0.5
                else [{"x": each} for each in X[rows].tolist()]
            )
            connection.request("POST", PREDICT, json.dumps({"instances": instances}))
            response = connection.getresponse()
            answer = json.load(response)
            assert response.status == 200
            for name, values in expected.items():
                of_name = [row[name] for row in answer["predictions"]]
                np.testing.assert_allclose(of_name, values[rows], rtol=1e-5, atol=1e-5)


def test_a_stalled_request_delays_nobody_and_is_refused_in_time(served):
    port, expected = served
    with socket.create_connection(("127.0.0.1", port), TIMEOUT) as stalled:
        stalled.sendall(request(b"{", length=99))
        answer = predictions(port, X[:2].tolist())
        np.testing.assert_allclose(answer["depth_scale"], expected["depth_scale"][:2], rtol=1e-5)
        response = HTTPResponse(stalled)
        response.begin()
        assert response.status == 408


def test_the_service_says_that_it_is_up(served):
    status, answer = answer_to(served[0], request(method="GET", path="/v1/models/model"))
    assert (status, answer["model_version_status"][0]["state"]) == (200, "AVAILABLE")


def post(connection, content):
    connection.request("POST", PREDICT, json.dumps(content))
    response = connection.getresponse()
    return response.status, json.load(response)


@pytest.mark.parametrize("named", [{}, {"signature_name": "serving_default"}])
@pytest.mark.parametrize("form", [X[:3].tolist(), {"x": X[:3].tolist()}])
def test_inputs_by_column_get_outputs_by_column(served, form, named):
    port, expected = served
    with closing(HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)) as connection:
        status, answer = post(connection, {"inputs": form, **named})
        assert (status, [*answer]) == (200, ["outputs"])
        assert answer["outputs"].keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_allclose(answer["outputs"][name], values[:3], rtol=1e-5, atol=1e-5)
        status, by_row = post(connection, {"instances": X[:3].tolist(), **named})
        assert status == 200
        assert by_row["predictions"][2]["depth_scale"] == answer["outputs"]["depth_scale"][2]


def test_a_connection_that_is_kept_waits_for_no_acknowledgement(served):
    times = []
    with closing(HTTPConnection("127.0.0.1", served[0], timeout=TIMEOUT)) as connection:
        for _ in range(40):
            start = time.perf_counter()
            post(connection, {"instances": X[:1].tolist()})
            times.append(time.perf_counter() - start)
    assert np.quantile(times, 0.25) < 0.03  # Linux delays an acknowledgement by 40 ms.


def test_two_inputs_and_infinite_intervals_are_served(tmp_path):
    inputs = {name: keras.Input((2,), name=name) for name in ("left", "right")}
    joined = keras.layers.Concatenate()([*inputs.values()])
    outputs = {"depth": keras.layers.Dense(1)(joined), "kind": keras.layers.Dense(3)(joined)}
    model = MultiTaskModel(inputs, outputs, {"depth": Laplace(), "kind": Categorical()})
    columns = {"left": X[:4, :2], "right": X[:4, 2:]}
    with pytest.warns(UserWarning, match="too few labels"):
        model.calibrate(
            columns, {"depth": X[:4, 0], "kind": np.arange(4) % 3}, intervals=0.95, verbose=0
        )
    predictive = model.predictive_model()
    predictive.export(tmp_path / "model", verbose=False)
    expected = predictive.predict(columns, verbose=0)
    assert np.all(expected["depth_lower"] == -np.inf)
    columns = {name: values.tolist() for name, values in columns.items()}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    with service(tmp_path / "model") as port:
        for name, values in predictions(port, rows).items():
            np.testing.assert_allclose(values, expected[name], rtol=1e-5, err_msg=name)
        with closing(HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)) as connection:
            _, answer = post(connection, {"inputs": columns})
            assert answer["outputs"]["depth_upper"] == [[None]] * 4
            status, answer = post(connection, {"inputs": columns | {"left": columns["left"][:3]}})
            assert (status, "lists of one length" in answer["error"]) == (400, True)
            columns["left"][0][0] = 3.4e38
            columns["right"][0] = [3.4e38, -3.4e38]
            status, answer = post(connection, {"inputs": columns})
            assert (status, bool(re.search("'depth_|'kind_", answer["error"]))) == (422, True)


def serve(*arguments):
    command = [sys.executable, str(ROOT / "examples" / "serve.py"), *map(str, arguments)]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=TIMEOUT)


def test_no_saved_model_and_a_busy_port_end_in_one_line(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.export(tmp_path / "model", verbose=False)
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        runs = {
            "Expected: a directory of a SavedModel": serve(tmp_path / "nothing"),
            f"Cannot listen at 127.0.0.1:{port}": serve(tmp_path / "model", "--port", port),
            "Cannot listen at 192.0.2.1:8501": serve(tmp_path / "model", "--host", "192.0.2.1"),
        }
    for message, run in runs.items():
        assert run.returncode == 1
        assert "Traceback" not in run.stderr
        assert run.stderr.splitlines()[-1].startswith(message)
