"""Pictures of what was learned, drawn by matplotlib (the extra `plots`).

A figure made here is unknown to pyplot, so nothing global changes: a notebook
shows it, `figure.savefig(path)` writes it. For a window, draw into pyplot's own
(`ax=plt.gca()`, `figure=plt.figure()`) and call `plt.show()`.
"""

from keras_hposgld.plotting.history import plot_history
from keras_hposgld.plotting.hyperparameters import plot_hyperparameters
from keras_hposgld.plotting.regularization_map import plot_regularization_map
from keras_hposgld.plotting.strengths import plot_strengths

__all__ = [
    "plot_history",
    "plot_hyperparameters",
    "plot_regularization_map",
    "plot_strengths",
]
