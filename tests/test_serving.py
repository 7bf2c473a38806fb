"""A service of an exported model answers with distributions, and outlives broken requests."""

import json
import re
import socket
import subprocess
import sys
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
    "another key": (400, of_json('{"inputs": [[1, 2, 3, 4]]}')),
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
    kinds = iter(3 * list(BROKEN))
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
