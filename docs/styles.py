"""Lines and settings that all figures share."""

LINES = [
    {"color": "#000000", "linestyle": "-"},
    {"color": "#1f6fb4", "linestyle": "--"},
    {"color": "#909090", "linestyle": "-."},
]
STYLE = {
    "savefig.transparent": True,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.hashsalt": "keras_uncertainty_mtl",  # The same file at each build.
}
