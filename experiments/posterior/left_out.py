"""Why a method has no row of a set."""


class LeftOut(Exception):
    """A method cannot serve a set: for regression only, or too many inputs."""
