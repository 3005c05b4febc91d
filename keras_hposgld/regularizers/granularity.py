"""Which entries of a weight share a strength."""

GRANULARITIES = ("parameter", "input", "output", "tensor", "auto")


def kept_axes(granularity: str, shape: tuple) -> set[int]:
    """The axes of a weight along which strengths differ.

    Args:
        granularity: One of `GRANULARITIES`.
        shape: Tuple, the shape of the weight.

    Raises:
        ValueError: If the weight has no axis that `granularity` could mean.
    """
    rank = len(shape)
    if granularity == "parameter":
        return set(range(rank))
    if granularity == "tensor":
        return set()
    if granularity == "auto":
        granularity = "input" if rank > 1 else "tensor"
        return kept_axes(granularity, shape)
    axis = rank - 1 if granularity == "output" else rank - 2
    if axis < 0:
        raise ValueError(
            f'`granularity="{granularity}"` needs a weight with such an axis. '
            f"Received: a weight of shape {tuple(shape)}. "
            'Use granularity="parameter" or "tensor" for it.'
        )
    return {axis}


def strength_shape(granularity: str, shape: tuple) -> tuple:
    """The shape of the strengths of a weight."""
    return tuple(shape[axis] for axis in sorted(kept_axes(granularity, shape)))


def aligned_shape(granularity: str, shape: tuple) -> tuple:
    """The shape in which a weight's strengths broadcast against it."""
    kept = kept_axes(granularity, shape)
    return tuple(size if axis in kept else 1 for axis, size in enumerate(shape))
