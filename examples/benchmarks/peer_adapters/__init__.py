"""What `peers.py` compares: one task, and a file for each framework."""
