"""Sphinx configuration: `make docs` builds these pages.

MyST-NB runs the notebook "Getting started" at each build, so its outputs are never stale. Furo has
a light and a dark theme, and works on small screens. MathJax comes with the pages: formulas need no
network.
"""

import inspect
import os
import re
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"


import keras_uncertainty_mtl
from docs import figures

project = "keras_uncertainty_mtl"
author = "the authors of keras_uncertainty_mtl"
version = release = keras_uncertainty_mtl.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "jupyter_execute"]
html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_show_sphinx = html_show_copyright = False

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_in_temp = True  # It writes files.
nb_execution_timeout = 150
nb_execution_raise_on_error = True
nb_output_stderr = "remove"
nb_merge_streams = True

autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
# "Returns" as plain text: Napoleon would take all before a colon for a type.
napoleon_custom_sections = [("Call arguments", "params_style"), "Returns"]
# Single backticks in docstrings are code, and links where they name something that is documented.
default_role = "py:obj"


def markdown_to_rst(app, what, name, obj, options, lines):
    """Turns the Markdown of a docstring, its links and fenced blocks, into reStructuredText."""
    text = re.sub(
        r"\[([^\]]+)\]\((http(?:[^()]|\([^()]*\))+)\)", r"`\1 <\2>`__", "\n".join(lines)
    )
    blocks = re.compile(r"^```python\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
    text = blocks.sub(
        lambda found: ".. code-block:: python\n\n" + indented(found[1]), text
    )
    text = re.sub(r"(`[^`\n]+`)(?=[^\W_])", r"\1\\ ", text)  # `keras.Input`s
    text = text.replace(", **kwargs:", r", \*\*kwargs:")
    lines[:] = text.splitlines()


def indented(code):
    return re.sub(r"^(?=.)", "    ", code, flags=re.MULTILINE)


def constructor_signature(app, what, name, obj, options, signature, annotation):
    """The signature of `__init__`: Keras gives its classes a `__new__` of any arguments."""
    if what != "class":
        return None
    parameters = list(inspect.signature(obj.__init__).parameters.values())[1:]
    plain = [each.replace(annotation=inspect.Parameter.empty) for each in parameters]
    # A function's default would show its address, which differs from build to build.
    return re.sub(r"<function .*?>", "…", str(inspect.Signature(plain))), annotation


def setup(app):
    figures.draw_all(Path(app.srcdir, "_figures"))
    app.connect(
        "autodoc-process-docstring", markdown_to_rst, priority=400
    )  # Before Napoleon.
    app.connect("autodoc-process-signature", constructor_signature)
