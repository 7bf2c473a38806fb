"""Multi-task problems of several kinds, from data that come with Python packages or this project.

Every seed draws a new split. The training part trains the network, the validation part chooses
weights, and the test part judges.
"""

from benchmarks.problems.base import Data, Problem, Split
from benchmarks.problems.flights import counts, flights, noise, weather
from benchmarks.problems.images import digits, scenes
from benchmarks.problems.tables import diamonds, grades, tumours

__all__ = ["PROBLEMS", "Data", "Problem", "Split"]

PROBLEMS = {
    "digits": digits,
    "tumours": tumours,
    "diamonds": diamonds,
    "flights": flights,
    "noise": noise,
    "counts": counts,
    "weather": weather,
    "grades": grades,
    "scenes": scenes,
}
