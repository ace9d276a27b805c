"""How far predicted trajectories are from recorded ones."""
