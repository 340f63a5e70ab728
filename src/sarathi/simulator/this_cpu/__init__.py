"""The machine at hand as simulated hardware: measured under load, fitted, kept in a file."""
