"""GPTDynamics: recorded training runs, how they are recorded, and where they are kept."""
