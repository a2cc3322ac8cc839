"""What language models of runs write."""
