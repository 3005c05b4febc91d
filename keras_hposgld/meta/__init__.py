"""Learning initial weights: what `MetaModel` is made of. Private."""
