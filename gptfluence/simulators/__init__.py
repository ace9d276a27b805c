"""Methods that predict trajectories: simulators, which are fitted on recorded runs, and TracIn-CP and Grad-Dot.

`methods.py` has the table of all of them. Classes are imported when they are first used, because they bring torch.
"""

from gptfluence.simulators.methods import METHODS, Line, Method, applicable

__all__ = ["METHODS", "Line", "Method", "applicable"]
