"""What many tests train with: batches, and Keras's own training on them."""

import keras

from keras_hposgld.data.arrays import ArrayData


def has_version(module, major, minor):
    """Whether a module is of a version or newer."""
    own = tuple(int(part) for part in module.__version__.split(".")[:2])
    return own >= (major, minor)


class Batches(keras.utils.PyDataset):
    """A list of batches, as Keras reads data by position."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


def train_plainly(model, data, batch_size, num_steps, num_chains):
    """Keras's own training, on the batches that a learner of seed 5 draws.

    Args:
        model: Compiled `keras.Model`.
        data: `(x, y)`.
        batch_size: Integer.
        num_steps: Integer, the length of a chain.
        num_chains: Integer.
    """
    batches = ArrayData("x", data, batch_size, seed=5)
    for x, y in batches.chains(num_steps).take(num_chains):
        for step in range(num_steps):
            model.train_on_batch(x[step], y[step])
    # What `fit` does at its end: only a moving average changes anything.
    model.optimizer.finalize_variable_values(model.trainable_variables)
    return model
