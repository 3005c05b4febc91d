"""Every kind of data and of model that a Keras user brings to `fit`."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_hposgld as hs


class Sequence(keras.utils.PyDataset):
    def __init__(self, x, y, batch_size):
        super().__init__(workers=2)
        self.x, self.y, self.batch_size = x, y, batch_size

    def __len__(self):
        return len(self.y) // self.batch_size

    def __getitem__(self, index):
        rows = slice(index * self.batch_size, (index + 1) * self.batch_size)
        return self.x[rows], self.y[rows]


def generator(x, y, batch_size):
    sequence = Sequence(x, y, batch_size)
    while True:
        for index in range(len(sequence)):
            yield sequence[index]


def frame(array):
    pandas = pytest.importorskip("pandas", reason="it is what is tested")
    return pandas.DataFrame(array)


def slices(*arrays):
    return tf.data.Dataset.from_tensor_slices(arrays)


# From arrays and a batch size to what `fit` gets as (x, y, batch_size).
KINDS = {
    "arrays": lambda x, y, b: (x, y, b),
    "tensors": lambda x, y, b: (tf.constant(x), tf.constant(y), b),
    "frames": lambda x, y, b: (frame(x), frame(y), b),
    "dataset of batches": lambda x, y, b: (slices(x, y).batch(b), None, None),
    "dataset of examples": lambda x, y, b: (slices(x, y), None, b),
    "PyDataset": lambda x, y, b: (Sequence(x, y, b), None, None),
    "generator": lambda x, y, b: (generator(x, y, b), None, None),
}


def make_arrays(n, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4)).astype("float32")
    return x, (x[:, :1] - x[:, 1:2]).astype("float32")


def dense(units, name=None):
    return keras.layers.Dense(
        units,
        kernel_regularizer=hs.regularizers.LearnableL2(0.02, max_value=5.0),
        name=name,
    )


def make_learner():
    keras.utils.set_random_seed(3)
    learner = hs.BilevelModel(
        keras.Sequential([keras.Input((4,)), dense(5), dense(1)])
    )
    learner.compile(
        optimizer=hs.SGLD(0.05, temperature=1e-4),
        loss="mse",
        hypergradient=hs.estimators.HPOSGLD(1, 2),
    )
    return learner


def learned_from(inner, outer):
    learner = make_learner()
    x, y, batch_size = inner
    outer_x, outer_y, outer_batch_size = outer
    history = learner.fit(
        x,
        y,
        outer_data=outer_x if outer_y is None else (outer_x, outer_y),
        batch_size=batch_size,
        outer_batch_size=outer_batch_size,
        steps_per_epoch=3 * 3,
        epochs=2,
        shuffle=False,
        verbose=0,
    )
    return learner, history


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_data_give_the_same(kind):
    arrays, outer = make_arrays(24, 0), make_arrays(12, 1)
    expected, history = learned_from((*arrays, 8), (*outer, 4))
    learner, same = learned_from(
        KINDS[kind](*arrays, 8), KINDS[kind](*outer, 4)
    )
    for a, b in zip(learner.weights, expected.weights, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=a.path)
    assert same.history == history.history
    assert int(learner.outer_iterations) == 6


def test_batches_of_all_examples_give_the_same_as_a_stack_of_them():
    # Arrays come once for all steps, a dataset once for each.
    arrays, outer = make_arrays(24, 0), make_arrays(12, 1)
    stacked = KINDS["dataset of batches"]
    expected, history = learned_from(stacked(*arrays, 24), stacked(*outer, 12))
    learner, same = learned_from((*arrays, 24), (*outer, 12))
    for a, b in zip(learner.weights, expected.weights, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=a.path)
    assert same.history == history.history


def test_epoch_of_a_sequence_is_one_pass():
    learner = make_learner()
    arrays = make_arrays(24, 0)
    learner.fit(
        Sequence(*arrays, 4),
        outer_data=arrays,
        verbose=0,
        validation_data=(Sequence(*arrays, 4)),
    )
    assert int(learner.outer_iterations) == 2  # 6 batches, 3 steps a chain


def test_generator_needs_a_number_of_steps_and_may_run_out():
    arrays = make_arrays(24, 0)
    with pytest.raises(ValueError, match="`steps_per_epoch` must be given"):
        make_learner().fit(generator(*arrays, 8), outer_data=arrays)
    learner = make_learner()
    sequence = Sequence(*arrays, 4)
    finite = (sequence[index] for index in range(6))
    with pytest.raises(RuntimeError, match="`x` must last until training"):
        learner.fit(
            finite,
            outer_data=arrays,
            steps_per_epoch=3 * 3,
            epochs=2,
            verbose=0,
        )
    assert int(learner.outer_iterations) == 2


@pytest.mark.parametrize("kind", ["dataset of batches", "PyDataset"])
def test_class_weight_goes_with_every_kind_of_data(kind):
    x, _ = make_arrays(24, 0)
    y = np.arange(24) % 3
    table = {0: 2.0, 2: 0.25}

    def learned(weighted):
        keras.utils.set_random_seed(3)
        learner = hs.BilevelModel(
            keras.Sequential([keras.Input((4,)), dense(3)])
        )
        learner.compile(
            optimizer=hs.SGLD(0.1),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            hypergradient=hs.estimators.HPOSGLD(1, 2),
        )
        if weighted is None:
            data, _, _ = KINDS[kind](x, y, 6)
            arguments = dict(x=data, class_weight=table)
        else:
            arguments = dict(x=x, y=y, sample_weight=weighted, batch_size=6)
        outer = dict(outer_data=(x, y), outer_batch_size=8, shuffle=False)
        learner.fit(**arguments, **outer, verbose=0)
        return learner

    weights = np.array([table.get(label, 1.0) for label in y])
    same, plain = learned(weights), learned(np.ones(24))
    for a, b in zip(
        learned(None).trainable_variables,
        same.trainable_variables,
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    assert np.any(
        same.trainable_variables[0] != plain.trainable_variables[0].numpy()
    )


class Subclassed(keras.Model):
    """Takes a dictionary of inputs, gives a dictionary of outputs."""

    def __init__(self):
        super().__init__()
        self.first, self.second = dense(6, "first"), dense(1, "second")
        self.dropout = keras.layers.Dropout(0.2)

    def call(self, inputs):  # knows nothing of `training`
        hidden = self.first(
            keras.ops.concatenate([inputs["a"], inputs["b"]], axis=-1)
        )
        return {
            "value": self.second(self.dropout(hidden)),
            "size": keras.ops.mean(hidden**2, axis=-1, keepdims=True),
        }


def functional():
    a, b = keras.Input((3,), name="a"), keras.Input((1,), name="b")
    hidden = dense(6, "first")(keras.layers.Concatenate()([a, b]))
    outputs = {
        "value": keras.layers.Dense(1, name="value")(hidden),
        "size": keras.layers.Dense(1, name="size")(hidden),
    }
    return keras.Model({"a": a, "b": b}, outputs)


@pytest.mark.parametrize("make_model", [Subclassed, functional])
@pytest.mark.parametrize("is_dataset", [False, True])
def test_dictionaries_of_inputs_and_outputs(make_model, is_dataset):
    x, y = make_arrays(40, 0)
    x = {"a": x[:, :3], "b": x[:, 3:]}
    y = {"value": y, "size": np.abs(y)}
    weight = {"value": np.linspace(0, 2, 40), "size": np.ones(40)}
    rows = slice(24), slice(24, None)

    def part(structure, rows):
        return keras.tree.map_structure(lambda array: array[rows], structure)

    inner = part((x, y, weight), rows[0])
    outer = part((x, y), rows[1])
    keras.utils.set_random_seed(0)
    learner = hs.BilevelModel(make_model())
    learner.compile(
        optimizer=hs.SGLD(0.05),
        loss={"value": "mse", "size": "mae"},
        loss_weights={"value": 1.0, "size": 0.1},
        metrics={"value": ["mae"]},
        hypergradient=hs.estimators.HPOSGLD(1, 1),
    )
    arguments = dict(
        x=inner[0], y=inner[1], sample_weight=inner[2], batch_size=8
    )
    if is_dataset:
        arguments = dict(x=tf.data.Dataset.from_tensor_slices(inner).batch(8))
        outer = tf.data.Dataset.from_tensor_slices(outer).batch(8)
    history = learner.fit(
        **arguments,
        outer_data=outer,
        validation_data=part((x, y), rows[1]),
        epochs=8,
        verbose=0,
    )
    outer_losses = history.history["outer_loss"]
    assert outer_losses[-1] < 0.7 * outer_losses[0]
    assert "val_value_mae" in history.history
    assert set(learner.hyperparameter_values()) == {
        f"{weight.path}/l2"
        for weight in learner.trainable_variables
        if weight.path.endswith(("first/kernel", "second/kernel"))
    }
    assert set(learner.predict(x, verbose=0)) == {"value", "size"}


def test_batches_of_single_numbers_are_batches():
    # `from_tensor_slices(dict(frame))` has one axis an input, and Keras adds
    # the second one.
    x, y = make_arrays(24, 0)
    columns = {name: x[:, n] for n, name in enumerate("abcd")}

    def learned(data, **arguments):
        keras.utils.set_random_seed(3)
        inputs = {name: keras.Input((1,), name=name) for name in columns}
        joined = keras.layers.Concatenate()(list(inputs.values()))
        learner = hs.BilevelModel(keras.Model(inputs, dense(1)(joined)))
        learner.compile(
            optimizer=hs.SGLD(0.05),
            loss="mse",
            hypergradient=hs.estimators.HPOSGLD(1, 2),
        )
        learner.fit(**data, **arguments, shuffle=False, verbose=0)
        assert int(learner.outer_iterations) == 2
        return learner

    dataset = slices(columns, y[:, 0]).batch(4)
    expected = learned(
        dict(x=columns, y=y, outer_data=(columns, y)), batch_size=4
    )
    same = learned(dict(x=dataset, outer_data=dataset))
    for a, b in zip(same.weights, expected.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, err_msg=a.path)
