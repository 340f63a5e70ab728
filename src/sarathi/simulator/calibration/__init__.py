"""The constants of the cost model: where they come from, and how wrong they are."""

from sarathi.simulator.calibration.error_table import Constant, ErrorRow, constants, error_table

__all__ = ["Constant", "ErrorRow", "constants", "error_table"]
