"""`fxgrad evaluate`: do balanced gradients explain better? Methods x policies x metrics over a data set."""

from fxgrad.evaluate.plan import METRICS, POLICIES, Plan
from fxgrad.evaluate.run import evaluate
from fxgrad.evaluate.store import Results, Store, read

__all__ = ["METRICS", "POLICIES", "Plan", "Results", "Store", "evaluate", "read"]
