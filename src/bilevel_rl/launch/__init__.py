"""From words to a run: names and options to objects, a sample budget to iterations, a run to its folder.

The command line and the experiments both start runs here, so that every run folder can be rebuilt in the same way.
"""

RECOMMENDED = "coupled_penalty"
RECOMMENDED_NEURAL = "covariance"  # for problems whose followers learn in environments
