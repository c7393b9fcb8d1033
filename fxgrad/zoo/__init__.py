"""The zoo: every model of timm, torchvision and transformers through the pass, and a row of what came out.

    from fxgrad import zoo
    rows = zoo.run(zoo.suite("timm-families"), "timm-families.csv")
    print(zoo.summary(rows))

It is a tool beside the pass, of which it uses what any user would. A file each: a case (case),
the lists of cases (suites), how a large model is made small (shrink), one case measured (measure),
processes (workers, running), the table (rows) and the documentation's page (report).
"""

from fxgrad.zoo.case import Built, Case, Limits
from fxgrad.zoo.report import page
from fxgrad.zoo.rows import Row, bar, read
from fxgrad.zoo.running import run, summary
from fxgrad.zoo.suites import SUITES, named, suite

__all__ = ["SUITES", "Built", "Case", "Limits", "Row", "bar", "named", "page", "read", "run", "suite", "summary"]
