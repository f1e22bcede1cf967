"""`python -m dev bench`: what the daemon stores, how fast, at what cost, and how that compares."""
