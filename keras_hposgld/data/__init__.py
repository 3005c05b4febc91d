"""Data for two levels: batches of one chain, whatever they come from."""
