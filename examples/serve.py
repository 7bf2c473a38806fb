"""Serves an exported model over HTTP, in a process without Keras and the package.

`python serve.py SAVED_MODEL --port 8501` answers as TensorFlow Serving's REST interface does:

```text
GET  /v1/models/model          {"model_version_status": [{"version": "1", "state": "AVAILABLE"}]}
POST /v1/models/model:predict  {"instances": [{"image": [[…]]}, …]}
                               {"predictions": [{"depth_location": [2.1], "depth_scale": [0.3]}, …]}
```

A model of one input takes `{"instances": [[[…]], …]}` too. `{"inputs": {"image": […]}}` has the
values by column, and its answer has `outputs`. An infinite end of an interval is null. A malformed
request gets a 4xx and `{"error": "…"}`. Sizes and waiting times are bounded, the number of
connections is not: on the internet, put a proxy in front, or use TensorFlow Serving with the same
requests.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

for module in ("keras", "keras_uncertainty_mtl"):
    sys.modules[module] = None  # type: ignore[assignment]  # blocks the import

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

MODEL = "/v1/models/model"
STATUS = {"model_version_status": [{"version": "1", "state": "AVAILABLE"}]}
MAX_BYTES = 16 * 2**20
MAX_INSTANCES = 1024
SIGNATURE = "serving_default"
TIMEOUT = 5.0  # in seconds, for each time that a client is waited for


class RequestError(Exception):
    """A request that gets this status and message."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


def predict(signature: Any, request: Any) -> dict[str, Any]:
    """The response to a decoded request.

    Raises:
        RequestError: If the request is malformed, or its predictions are not finite.
    """
    specs = signature.structured_input_signature[1]
    instances = instances_of(request, specs.keys())
    if not isinstance(instances, list) or not 0 < len(instances) <= MAX_INSTANCES:
        message = f"`instances` must be a list of 1 to {MAX_INSTANCES}."
        raise RequestError(HTTPStatus.BAD_REQUEST, message)
    if len(specs) == 1 and not isinstance(instances[0], dict):
        instances = [{name: instance} for name in specs for instance in instances]
    if not all(isinstance(each, dict) and each.keys() == specs.keys() for each in instances):
        message = f"Every instance must have exactly the inputs {sorted(specs)}."
        raise RequestError(HTTPStatus.BAD_REQUEST, message)
    columns = {name: [instance[name] for instance in instances] for name in specs}
    try:
        outputs = signature(**{name: to_tensor(columns[name], specs[name]) for name in specs})
    except tf.errors.InvalidArgumentError as error:  # sizes that the signature leaves open
        raise RequestError(HTTPStatus.BAD_REQUEST, error.message) from error
    values = {name: to_list(name, output.numpy()) for name, output in outputs.items()}
    # TensorFlow Serving does not name the only output.
    if "inputs" in request:
        return {"outputs": values if len(values) > 1 else next(iter(values.values()))}
    rows = zip(*values.values(), strict=True)
    predictions = [dict(zip(values, row, strict=True)) if len(row) > 1 else row[0] for row in rows]
    return {"predictions": predictions}


def instances_of(request: Any, names: Any) -> Any:
    """The instances of a request, also where it has `inputs` by column."""
    form = set(request) - {"signature_name"} if isinstance(request, dict) else set()
    if form not in ({"instances"}, {"inputs"}):
        message = 'Expected: {"instances": […]} or {"inputs": {…}}, and at most a "signature_name".'
        raise RequestError(HTTPStatus.BAD_REQUEST, message)
    if request.get("signature_name", SIGNATURE) != SIGNATURE:
        message = f"Expected: `signature_name` '{SIGNATURE}', or none."
        raise RequestError(HTTPStatus.BAD_REQUEST, message)
    columns = request.get("inputs")
    if "instances" in form or (len(names) == 1 and not isinstance(columns, dict)):
        return request.get("instances", columns)
    lists = [*columns.values()] if isinstance(columns, dict) and columns.keys() == names else []
    lengths = {len(each) if isinstance(each, list) else None for each in lists}
    if len(lengths) != 1 or None in lengths:
        message = f"`inputs` must have exactly {sorted(names)}, lists of one length."
        raise RequestError(HTTPStatus.BAD_REQUEST, message)
    return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]


def to_list(name: str, values: Any) -> Any:
    """The values of one output for JSON, which has no infinity: an infinite end is None."""
    ends = np.isinf(values) & name.endswith(("_lower", "_upper"))
    if not np.all(np.isfinite(values) | ends):
        message = f"The output '{name}' is not finite: the inputs are out of the model's range."
        raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, message)
    if np.any(ends):
        values = values.astype(object)
        values[ends] = None
    return values.tolist()


def to_tensor(values: list[Any], spec: Any) -> Any:
    """The values of one input as a tensor of its dtype and shape, whose numbers are finite."""
    cells = np.asarray(values, object)
    numbers = {int} if spec.dtype.is_integer else {int, float}
    expected = f"Input '{spec.name}': expected {spec.dtype.name} of shape {spec.shape}"
    if found := {type(cell) for cell in cells.ravel()} - numbers:
        names = sorted(each.__name__ for each in found)
        message = f"{expected}. Received: {', '.join(names)}, or lists of different lengths."
        raise RequestError(HTTPStatus.BAD_REQUEST, message)
    if not spec.shape.is_compatible_with(cells.shape):
        raise RequestError(HTTPStatus.BAD_REQUEST, f"{expected}. Received: {cells.shape}.")
    try:
        with np.errstate(over="raise"):
            array = cells.astype(spec.dtype.as_numpy_dtype)
        finite = bool(np.all(np.isfinite(array)))
    except (OverflowError, FloatingPointError):
        finite = False
    if not finite:
        raise RequestError(HTTPStatus.BAD_REQUEST, f"{expected}. Received: a number out of range.")
    return tf.constant(array)


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    protocol_version = "HTTP/1.1"
    timeout = TIMEOUT
    disable_nagle_algorithm = True  # The body would wait 40 ms for the client to confirm the head.
    signature: Any

    def do_GET(self) -> None:
        if self.path == MODEL:
            self.answer(HTTPStatus.OK, STATUS)
        elif self.path == f"{MODEL}:predict":
            self.send_error(HTTPStatus.METHOD_NOT_ALLOWED, "Expected: POST.")
        else:
            self.send_error(HTTPStatus.NOT_FOUND, f"Expected: {MODEL} or {MODEL}:predict.")

    def do_POST(self) -> None:
        try:
            self.answer(HTTPStatus.OK, predict(self.signature, self.decoded_body()))
        except RequestError as error:
            self.send_error(error.status, str(error))
        except TimeoutError:
            self.send_error(HTTPStatus.REQUEST_TIMEOUT, "The body is late.")

    def decoded_body(self) -> Any:
        """The body of the request, decoded."""
        if self.path != f"{MODEL}:predict":
            raise RequestError(HTTPStatus.NOT_FOUND, f"Expected: {MODEL}:predict.")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal()):
            raise RequestError(HTTPStatus.LENGTH_REQUIRED, "Expected: a Content-Length.")
        if len(length) > 9 or int(length) > MAX_BYTES:
            message = f"Expected: at most {MAX_BYTES} bytes."
            raise RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
        try:
            return json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError) as error:
            raise RequestError(HTTPStatus.BAD_REQUEST, f"Expected: JSON. {error}") from error

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answers with an error, and hangs up, because the body may be unread."""
        # http.server blames itself for unknown methods and versions of HTTP.
        code = {501: 405, 505: 400}.get(code, code)
        self.close_connection = True
        self.request_version = self.protocol_version  # http.server answers nonsense as HTTP/0.9.
        self.answer(code, {"error": message or HTTPStatus(code).phrase})
        with contextlib.suppress(OSError):
            # Unread bytes would reset the connection before the client has read the answer.
            self.connection.shutdown(socket.SHUT_WR)
            self.rfile.read(2 * MAX_BYTES)

    def answer(self, code: int, content: dict[str, Any]) -> None:
        """Sends a response of JSON."""
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Logs nothing."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Serves an exported model over HTTP.")
    parser.add_argument("saved_model", type=Path)
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 answers other machines")
    parser.add_argument("--port", type=int, default=8501, help="0 takes a free one")
    options = parser.parse_args()
    try:
        model = tf.saved_model.load(options.saved_model)
        Handler.signature = model.signatures[SIGNATURE]
    except (OSError, KeyError) as error:
        sys.exit(f"Expected: a directory of a SavedModel with the signature {SIGNATURE}. {error}")
    try:
        server = ThreadingHTTPServer((options.host, options.port), Handler)
    except (OSError, OverflowError) as error:
        sys.exit(f"Cannot listen at {options.host}:{options.port}: {error}. Try another --port.")
    with server, contextlib.suppress(KeyboardInterrupt):
        print(f"http://{options.host}:{server.server_port}{MODEL}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
