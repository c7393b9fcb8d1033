"""The zoo: convert and check models of timm, torchvision, transformers and other packages, one result row per model.

    from fxgrad import zoo
    rows = zoo.run(zoo.suite("timm-families"), "timm-families.csv")
    print(zoo.summary(rows))

It uses only fxgrad's public functions. The files: one model (case), the lists of cases (suites), models of packages as
data (packages), reduction of large models (shrink), whether a model itself runs (runs), the measurement of one case
(measure), processes (workers, running), the table (rows), and the page for the documentation (report).
"""

from fxgrad.zoo.case import Built, Case, Limits
from fxgrad.zoo.report import page
from fxgrad.zoo.rows import Row, bar, read
from fxgrad.zoo.running import run, summary
from fxgrad.zoo.suites import SUITES, named, suite

__all__ = ["SUITES", "Built", "Case", "Limits", "Row", "bar", "named", "page", "read", "run", "suite", "summary"]
