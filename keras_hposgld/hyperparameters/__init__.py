"""Learnable hyperparameters: Keras objects that own unconstrained variables."""
