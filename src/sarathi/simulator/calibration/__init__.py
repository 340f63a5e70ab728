"""The constants of the cost model: what they are fitted to, and how large its errors are.

measurements.py reads profiles; studies.py says which terms are fitted to which of them, and makes
the tables. Use `error_table` and `constants`.
"""

from sarathi.simulator.calibration.studies import Constant, ErrorRow, constants, error_table

__all__ = ["Constant", "ErrorRow", "constants", "error_table"]
