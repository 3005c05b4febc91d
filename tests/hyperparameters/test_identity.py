"""A weight is known by its place, and each model has strengths of its own."""

import gc
import weakref

import keras
import numpy as np
import pytest

import keras_hposgld as hs
from keras_hposgld.hyperparameters.addresses import weight_addresses

L = keras.layers
X = np.random.default_rng(0).normal(size=(24, 4)).astype("float32")


def l2(*arguments, **keywords):
    return hs.regularizers.LearnableL2(*arguments, **keywords)


def dense_pair(regularizer, names=("a", "b")):
    return keras.Sequential(
        [
            keras.Input((4,)),
            *(
                L.Dense(4, kernel_regularizer=regularizer, name=n)
                for n in names
            ),
        ]
    )


def scatter(model, seed=1):
    """Sets all strengths of a model to different values; returns them."""
    rng = np.random.default_rng(seed)
    for owner in hs.find_hyperparameters(model):
        for variable in owner.hyperparameter_variables:
            variable.assign(rng.normal(-2.0, 1.0, variable.shape))
    return strengths(model)


def strengths(model):
    """The strengths of each regularized weight, by its address."""
    hs.find_hyperparameters(model)
    model = getattr(model, "model", model)
    places = weight_addresses(model)
    return {
        places[id(weight)]: weight.regularizer.strength_values()["l2"]
        for weight in model.weights
        if weight.regularizer is not None
    }


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for place, value in expected.items():
        np.testing.assert_array_equal(found[place], value, err_msg=place)


def save_and_load(model, folder):
    model.save(folder / "model.keras")
    return keras.models.load_model(folder / "model.keras")


def learn(learner, epochs=1, **arguments):
    defaults = dict(
        optimizer=hs.SGLD(0.05),
        loss="mse",
        hypergradient=hs.estimators.HPOSGLD(1, 1),
        hyper_optimizer=keras.optimizers.Adam(1.0),
    )
    learner.compile(**(defaults | arguments))
    shape = (len(X), learner(X[:1]).shape[-1])
    y = np.random.default_rng(1).normal(size=shape)
    learner.fit(
        *(X[:16], y[:16]),
        outer_data=(X[16:], y[16:]),
        batch_size=4,
        epochs=epochs,
        verbose=0,
    )
    return learner


# Addresses.


def test_addresses_are_places_as_in_files_of_keras():
    inner = keras.Sequential([keras.Input((4,)), L.Dense(4), L.Dense(2)])
    model = keras.Sequential([keras.Input((4,)), L.Dense(4), inner, L.PReLU()])
    assert list(weight_addresses(model).values()) == [
        "layers/dense/kernel",
        "layers/dense/bias",
        "layers/sequential/layers/dense/kernel",
        "layers/sequential/layers/dense/bias",
        "layers/sequential/layers/dense_1/kernel",
        "layers/sequential/layers/dense_1/bias",
        "layers/p_re_l_u/alpha",
    ]


def attention():
    i = keras.Input((3, 4))
    return keras.Model(
        i, L.MultiHeadAttention(2, 3, kernel_regularizer=l2())(i, i)
    )


def recurrent():
    cells = [L.LSTMCell(3), L.GRUCell(2)]
    return keras.Sequential([keras.Input((3, 4)), L.RNN(cells)])


def shared():
    i, layer = keras.Input((4,)), L.Dense(4)
    return keras.Model(i, layer(layer(i)))


@pytest.mark.parametrize("make", [attention, recurrent, shared])
def test_each_weight_has_an_address_of_its_own(make):
    places = weight_addresses(make())
    model = make()
    assert len(set(places.values())) == len(places)
    assert list(weight_addresses(model).values()) == list(places.values())
    assert len(weight_addresses(model)) == len(model.weights)


def test_addresses_stay_when_weights_are_frozen_or_get_lora():
    model = dense_pair(None)
    before = weight_addresses(model)
    model.layers[0].trainable = False
    model.layers[1].enable_lora(2)
    after = weight_addresses(model)
    assert before.items() <= after.items()
    assert set(after.values()) - set(before.values()) == {
        "layers/dense_1/lora_kernel_a",
        "layers/dense_1/lora_kernel_b",
    }


# One regularizer object, several models.


@pytest.mark.parametrize("outside", [False, True])
def test_each_trial_has_strengths_of_its_own(tmp_path, outside):
    regularizer = l2(1e-2)
    kept = []
    for trial in range(3):
        keras.utils.set_random_seed(trial)
        names = (f"a{trial}", f"b{trial}")
        if outside:
            learner = hs.BilevelModel(
                dense_pair(None, names), regularizer=regularizer
            )
        else:
            learner = hs.BilevelModel(dense_pair(regularizer, names))
        learn(learner, epochs=3 - trial)
        assert len(learner.hyperparameters) == 2
        assert all(
            f"b{trial}" in p or f"a{trial}" in p
            for p in learner.hyperparameter_values()
        )
        kept.append((learner, strengths(learner)))
    for number, (learner, own) in enumerate(kept):
        assert_same(strengths(learner), own)  # no other trial moved them
        folder = tmp_path / str(number)
        folder.mkdir()
        assert_same(strengths(save_and_load(learner, folder)), own)


def test_strengths_are_kept_no_longer_than_their_model():
    regularizer = l2()
    for _ in range(3):
        model = dense_pair(regularizer)
        hs.find_hyperparameters(model)
        ends = [weakref.ref(w) for w in model.trainable_variables]
        del model
        gc.collect()
        assert all(end() is None for end in ends)
    model = dense_pair(regularizer)
    assert hs.find_hyperparameters(model) == [regularizer]
    assert len(regularizer.hyperparameter_variables) == 2
    assert len(regularizer.variables) == 2


def test_plain_models_share_a_regularizer_as_they_share_one_of_keras(tmp_path):
    regularizer = l2(0.1)
    first, second = dense_pair(regularizer), dense_pair(regularizer, ("c", "d"))
    expected = scatter(first)
    assert_same(
        strengths(second),
        {k: np.full((4, 4), np.float32(0.1)) for k in expected}
        | strengths(second),
    )
    assert not set(map(id, hs.find_hyperparameters(first))) & set(
        map(id, hs.find_hyperparameters(second))
    )
    assert_same(strengths(save_and_load(first, tmp_path)), expected)


def test_a_layer_in_two_models_has_one_set_of_strengths():
    layer = L.Dense(4, kernel_regularizer=l2())
    models = [keras.Sequential([keras.Input((4,)), layer]) for _ in range(2)]
    assert hs.find_hyperparameters(models[0]) == hs.find_hyperparameters(
        models[1]
    )


# Files.


@pytest.mark.parametrize("number", [1, 3])
def test_learner_with_one_object_on_three_layers_goes_on(tmp_path, number):
    regularizers = [l2(1e-2) for _ in range(number)]
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((4,))]
        + [
            L.Dense(3, kernel_regularizer=regularizers[n % number])
            for n in range(3)
        ]
    )
    learner = learn(hs.BilevelModel(model, seed=0))
    expected = strengths(learner)
    loaded = save_and_load(learner, tmp_path)
    assert_same(strengths(loaded), expected)
    assert len(loaded.hyperparameters) == 3
    again = tmp_path / "again"
    again.mkdir()
    assert_same(strengths(save_and_load(loaded, again)), expected)
    assert_same(strengths(save_and_load(loaded.model, again)), expected)


def test_gradual_unfreezing(tmp_path):
    model = dense_pair(l2(1e-2, granularity="tensor"))
    a, b = model.layers
    a.trainable = False
    hs.find_hyperparameters(model)
    a.trainable = True
    expected = scatter(model)
    assert len(expected) == 2
    a.trainable = False  # frozen, and yet in the file
    loaded = save_and_load(model, tmp_path)
    loaded.layers[0].trainable = True
    assert_same(strengths(loaded), expected)


@pytest.mark.parametrize("twice", [False, True])
def test_one_file_loaded_twice_makes_two_models(tmp_path, twice):
    expected = scatter(model := dense_pair(l2()))
    first = save_and_load(model, tmp_path)
    if twice:
        hs.find_hyperparameters(first)
    second = keras.models.load_model(tmp_path / "model.keras")
    assert_same(strengths(second), expected)
    scatter(second, seed=2)
    assert_same(strengths(first), expected)


@keras.saving.register_keras_serializable(package="test_identity")
class Subclass(keras.Model):
    """A model whose layers are made in its code, of one regularizer."""

    def __init__(self, learned=True, **arguments):
        super().__init__(**arguments)
        self.learned = learned
        regularizer = l2(1e-2) if learned else None
        self.a, self.b, self.c = (
            L.Dense(4, "tanh", kernel_regularizer=regularizer) for _ in "abc"
        )

    def call(self, x):
        return self.c(self.b(self.a(x)))

    def get_config(self):
        return {"learned": self.learned}


@pytest.mark.parametrize("find", [False, True])
def test_subclassed_model_finds_its_strengths(tmp_path, find):
    model = Subclass()
    model(X)
    expected = scatter(model)
    loaded = save_and_load(model, tmp_path)
    if find:
        hs.find_hyperparameters(loaded)
        np.testing.assert_allclose(sum(loaded.losses), sum(model.losses), 1e-6)
    else:  # all its kernels have one shape, and Keras numbers their layers
        with pytest.raises(ValueError, match="find_hyperparameters"):
            loaded.losses  # noqa: B018
    assert_same(strengths(loaded), expected)
    learner = hs.BilevelModel(model)
    learner.compile(hs.SGLD(0.05), loss="mse")
    assert_same(strengths(save_and_load(learner, tmp_path)), expected)


def test_learner_with_filter_around_a_subclassed_model(tmp_path):
    # All kernels have one shape; the layers' names are others after loading.
    keras.utils.clear_session()  # so that names count from their start
    learner = hs.BilevelModel(
        Subclass(learned=False),
        regularizer=l2(1e-2),
        filter=lambda weight: (
            weight.path.split("/")[-2:] == ["b", "kernel"]
            or "dense_1" in weight.path
        ),
    )
    learner.model.b.name = "b"
    learn(learner)
    expected = strengths(learner)
    assert list(expected) == ["b/kernel"]
    loaded = save_and_load(learner, tmp_path)
    assert_same(strengths(loaded), expected)
    learn(loaded)
    assert list(strengths(loaded)) == ["b/kernel"]


@keras.saving.register_keras_serializable(package="test_identity")
class Scale(L.Layer):
    """A layer that does not hold its regularizer on an attribute."""

    def build(self, shape):
        self.w = self.add_weight(
            shape=(shape[-1],), initializer="ones", regularizer=l2(1e-2)
        )

    def call(self, x):
        return x * self.w


def test_learner_saves_strengths_that_no_layer_holds(tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), Scale(), Scale(), L.Dense(1)])
    learner = learn(hs.BilevelModel(model), epochs=3)
    expected = strengths(learner)
    assert all(np.ptp(value) > 0 for value in expected.values())
    assert_same(strengths(save_and_load(learner, tmp_path)), expected)
    learner.save_weights(tmp_path / "w.weights.h5")
    scatter(learner)
    learner.load_weights(tmp_path / "w.weights.h5")
    assert_same(strengths(learner), expected)


def test_plain_weights_load_into_a_model_with_strengths(tmp_path):
    plain, model = dense_pair(None), dense_pair(l2())
    expected = scatter(model)
    plain.save_weights(tmp_path / "plain.weights.h5")
    model.load_weights(tmp_path / "plain.weights.h5")
    np.testing.assert_array_equal(model(X), plain(X))
    assert_same(strengths(model), expected)


@pytest.mark.parametrize("from_file", [False, True])
@pytest.mark.parametrize("into_file", [False, True])
def test_weights_of_copies_and_of_one_object(tmp_path, from_file, into_file):
    # Loading makes a regularizer for each layer, where code had one for both.
    def make(is_loaded):
        model = dense_pair(l2())
        return save_and_load(model, tmp_path) if is_loaded else model

    source, target = make(from_file), make(into_file)
    expected = scatter(source)
    source.save_weights(tmp_path / "w.weights.h5")
    target.load_weights(tmp_path / "w.weights.h5")
    assert_same(strengths(target), expected)


def test_part_of_a_model_saved_alone_and_the_other_way(tmp_path):
    regularizer = l2()
    part = dense_pair(regularizer)
    whole = keras.Sequential(
        [keras.Input((4,)), L.Dense(4, kernel_regularizer=l2()), part]
    )
    scatter(whole)
    inner = {
        place.removeprefix("layers/sequential/"): value
        for place, value in strengths(whole).items()
        if "sequential" in place
    }
    part.save(tmp_path / "part.keras")
    alone = keras.models.load_model(tmp_path / "part.keras")
    assert_same(strengths(alone), inner)
    again = keras.models.load_model(tmp_path / "part.keras")
    wrapped = keras.Sequential([keras.Input((4,)), again])
    found = strengths(wrapped)
    assert_same(
        {k.removeprefix("layers/sequential/"): v for k, v in found.items()},
        inner,
    )


def test_missing_partner_is_named(tmp_path):
    model = dense_pair(l2())
    scatter(model)
    model.save_weights(tmp_path / "w.weights.h5")
    # The regularizer is on other layers than in the file.
    regularizer = l2()
    other = keras.Sequential(
        [
            keras.Input((4,)),
            L.Dense(4, kernel_regularizer=regularizer),
            L.Dense(4),
            L.Dense(4, kernel_regularizer=regularizer),
        ]
    )
    hs.find_hyperparameters(other)
    with pytest.raises(
        ValueError, match="no learned strengths for some.*dense"
    ):
        regularizer.load_own_variables(stored(model))


def test_strengths_of_weights_that_are_not_there_are_refused(tmp_path):
    model = dense_pair(l2())
    scatter(model)
    regularizer = l2()
    regularizer.load_own_variables(stored(model))
    other = keras.Sequential(
        [keras.Input((4,)), L.PReLU(), Subclass(learned=False)]
    )
    other.layers[1].b.kernel.regularizer = regularizer
    with pytest.raises(
        ValueError, match=r"layers/subclass/b/kernel.*layers/de"
    ):
        hs.find_hyperparameters(other)


def stored(model):
    (owner,) = hs.find_hyperparameters(model)
    store = {}
    owner.save_own_variables(store)
    return store


def test_unclear_path_asks_for_the_model():
    regularizer = l2()
    first = dense_pair(None)
    regularizer.load_own_variables(stored(dense_pair(l2())))
    kernel = first.layers[0].kernel
    kernel.regularizer = regularizer
    with pytest.raises(ValueError, match="cannot be told"):
        regularizer(keras.Variable(np.ones((4, 4)), name="kernel"))


def test_strengths_of_another_shape_are_refused():
    regularizer = l2(granularity="tensor")
    hs.find_hyperparameters(dense := dense_pair(regularizer))
    store = stored(
        keras.Sequential(
            [
                keras.Input((4,)),
                L.Dense(
                    3, kernel_regularizer=l2(granularity="tensor"), name="a"
                ),
            ]
        )
    )
    with pytest.raises(ValueError, match=r"shape \(4, 3\)"):
        regularizer.load_own_variables(store)
    del dense


# Copies in memory.


def test_clone_has_the_same_weights_regularized():
    learner = hs.BilevelModel(
        dense_pair(None),
        regularizer=l2(),
        filter=lambda w: w.path.endswith("b/kernel"),
    )
    clone = keras.models.clone_model(dense_pair(l2()))
    assert len(strengths(clone)) == 2
    again = hs.BilevelModel.from_config(learner.get_config())
    assert list(strengths(again)) == ["layers/dense_1/kernel"]


def test_lora_strengths_come_back(tmp_path):
    model = dense_pair(None)
    for layer in model.layers:
        layer.enable_lora(2)
    learner = hs.BilevelModel(
        model, regularizer=l2(), filter=lambda w: "lora" in w.name
    )
    learn(learner)
    expected = strengths(learner)
    assert len(expected) == 4
    assert_same(strengths(save_and_load(learner, tmp_path)), expected)


def test_a_first_fit_that_fails_leaves_a_model_that_works():
    def typo(y_true, y_pred):
        raise ValueError("no such metric")

    y = X[:, :4]
    model = dense_pair(l2(0.1))
    model.compile("sgd", "mse", metrics=[typo])
    with pytest.raises(ValueError, match="no such metric"):
        model.fit(X, y, verbose=0)
    model.compile("sgd", "mse", metrics=["mae"])
    model.fit(X, y, verbose=0)
    for value in strengths(model).values():
        np.testing.assert_allclose(value, 0.1, rtol=1e-6)


def test_activity_regularizer_is_refused():
    layer = L.Dense(2, activity_regularizer=l2())
    with pytest.raises(RuntimeError, match="not as `activity_regularizer`"):
        layer(X)
    # Before anything is trained, whatever else there is to learn.
    model = keras.Sequential([keras.Input((X.shape[1],)), layer, L.Dense(1)])
    for attached in (None, l2()):
        with pytest.raises(ValueError, match="LearnableActivityPenalty"):
            hs.BilevelModel(model, regularizer=attached)
    with pytest.raises(ValueError, match="LearnableActivityPenalty"):
        hs.find_hyperparameters(model)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5")
def test_weights_in_old_h5_files(tmp_path):
    model, fresh = dense_pair(l2()), dense_pair(l2())
    expected = scatter(model)
    model.save(tmp_path / "model.h5")
    hs.find_hyperparameters(fresh)
    fresh.load_weights(tmp_path / "model.h5")
    np.testing.assert_array_equal(fresh(X), model(X))
    assert_same(strengths(fresh), expected)


@pytest.mark.parametrize("second", [None, "other"])
def test_second_learner_goes_on_with_the_strengths_of_the_first(
    tmp_path, second
):
    model = dense_pair(None)
    first = learn(hs.BilevelModel(model, regularizer=l2(1e-2)))
    expected = strengths(first)
    if second is None:
        learner = hs.BilevelModel(model)
    else:
        with pytest.warns(UserWarning, match="`regularizer` is left out"):
            learner = hs.BilevelModel(model, regularizer=l2(0.5))
    assert_same(strengths(learner), expected)
    learn(learner)
    expected = strengths(learner)
    assert_same(strengths(save_and_load(learner, tmp_path)), expected)
