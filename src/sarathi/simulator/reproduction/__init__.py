"""The evaluation of the Sarathi-Serve paper on the simulator, each figure or table by its name."""
