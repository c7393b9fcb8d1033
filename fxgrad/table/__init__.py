"""The rule table: what every op is, and which backward every kind gets. Data, read from TOML."""

from fxgrad.table.loading import RuleTable, load, presets
from fxgrad.table.row import Row

__all__ = ["Row", "RuleTable", "load", "presets"]
