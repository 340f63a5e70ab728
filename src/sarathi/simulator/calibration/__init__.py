"""The constants of the cost model: what they are fitted to, and how large its errors are.

measurements.py reads profiles, studies.py says which terms are fitted to which of them (with
gpu_fit.py), error_table.py makes the tables. Use `error_table` and `constants`.
"""

from sarathi.simulator.calibration.error_table import Constant, ErrorRow, constants, error_table

__all__ = ["Constant", "ErrorRow", "constants", "error_table"]
