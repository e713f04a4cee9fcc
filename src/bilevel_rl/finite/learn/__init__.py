"""What sampled solvers learn with: followers, trajectories, replay, learnt transitions."""
