"""Random schedules of a whole homeport on a simulated clock and network."""
