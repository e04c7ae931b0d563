"""Studies of many runs: their statistics, and the comparison of groups of runs."""
