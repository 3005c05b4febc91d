"""The plan of the package: which room stands on which floor, who imports whom.

A room is a folder of the package, or a module of its root. It imports from the
floors below its own, and from itself.
"""

import ast
import pathlib

PACKAGE = pathlib.Path(__file__).parents[2] / "keras_hposgld"
FLOORS = (
    ("core",),
    ("samplers",),
    ("estimators",),
    ("hyperparameters",),
    ("regularizers", "losses", "layers"),
    ("data",),
    ("training",),
    ("meta", "diagnostics", "plotting"),
    ("callbacks",),
    ("bilevel_model", "meta_model", "moved", "refit"),
    ("__init__",),
)
HEIGHTS = {room: n for n, floor in enumerate(FLOORS) for room in floor}


def _name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room_of(module: str) -> str:
    """The room in which a module lies."""
    return (module.split(".") + ["__init__"])[1]


def imports_of(module: str) -> set[str]:
    """The modules of the package that a module imports."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in MODULES else node.module)
    return found & MODULES.keys()


def arrows() -> set[tuple[str, str]]:
    """Pairs of rooms of which the first imports from the second."""
    pairs = {
        (room_of(module), room_of(other))
        for module in MODULES
        for other in imports_of(module)
    }
    return {(room, other) for room, other in pairs if room != other}
