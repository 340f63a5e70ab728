"""The same scheduler under a virtual clock, on hardware that need not be there."""
