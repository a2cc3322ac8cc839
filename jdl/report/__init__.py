"""What is said of runs that have ended: a page about one, a comparison of several."""
