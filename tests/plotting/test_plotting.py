"""What the pictures show is what they were given."""

import pickle
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_hposgld as hs
from keras_hposgld import plotting
from keras_hposgld.plotting.hyperparameters import NUM_BINS

matplotlib = pytest.importorskip(
    "matplotlib", reason="matplotlib is optional: keras-hposgld[plots]"
)
from matplotlib import colors  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

LOGS = {
    "val_accuracy": [0.5, 0.6, 0.7],
    "accuracy": [0.4, 0.7, 0.9],
    "val_loss": [2.1, 1.6, 1.3],
    "loss": [2.0, 1.5, 1.0],
    "outer_loss": [1.8, 1.4, 1.1],
    "val_outer_loss": [1.9, 1.5, 1.2],
    "hypergradient_norm": [1.0, 0.1, 0.01],
    "skipped_updates": [0.0, 0.0, 40.0],
    "learning_rate": [0.05, 0.05, 0.01],
}


def drawn_lines(ax):
    """`{label: (x, y)}` of all curves of an axes."""
    return {
        line.get_label(): tuple(map(list, line.get_data()))
        for line in ax.get_lines()
    }


def row_labels(figure):
    return [text.get_text() for text in figure.axes[0].get_yticklabels()]


def make_model():
    def regularizer(start, granularity):
        return hs.regularizers.LearnableL2(start, granularity=granularity)

    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(
                4, kernel_regularizer=regularizer(1e-2, "input"), name="first"
            ),
            keras.layers.Dense(
                1, kernel_regularizer=regularizer(1e-3, "tensor"), name="last"
            ),
        ]
    )


# plot_hyperparameters


def test_rows_are_histograms_over_shared_logarithmic_bins(rng):
    values = {
        "narrow/l2": rng.lognormal(-6, 0.3, (40, 10)),
        "wide/l2": rng.lognormal(-3, 2, 320),
    }
    figure = plotting.plot_hyperparameters(values)
    (ax,) = figure.axes
    first, second = (bars.get_data() for bars in ax.patches)
    np.testing.assert_array_equal(first.edges, second.edges)
    everything = np.concatenate([row.ravel() for row in values.values()])
    np.testing.assert_allclose(
        first.edges[[0, -1]], [everything.min(), everything.max()]
    )
    steps = np.diff(np.log(first.edges))
    np.testing.assert_allclose(steps, steps[0])
    for center, (row, bars) in enumerate(
        zip(values.values(), (first, second), strict=True)
    ):
        counts, _ = np.histogram(row, bars.edges)
        assert counts.sum() == row.size
        heights = bars.baseline - bars.values  # the axis points downwards
        np.testing.assert_allclose(heights, 0.8 * counts / counts.max())
        assert bars.baseline == center + 0.4
    assert ax.get_xscale() == "log"
    assert ax.get_xlabel() == "learned value"
    assert ax.get_ylim() == (1.5, -0.5)
    assert row_labels(figure) == ["narrow/l2\nn = 400", "wide/l2\nn = 320"]


def test_medians_are_marked(rng):
    values = {"a": rng.lognormal(-6, 1, 99), "b": rng.lognormal(-3, 1, 99)}
    (ax,) = plotting.plot_hyperparameters(values).axes
    for center, (row, mark) in enumerate(
        zip(values.values(), ax.collections, strict=True)
    ):
        (line,) = mark.get_segments()
        x = np.median(row)
        np.testing.assert_allclose(line, [(x, center - 0.4), (x, center + 0.4)])


def test_single_value_is_a_point():
    (ax,) = plotting.plot_hyperparameters({"a": [1e-3, 2e-3], "b": 0.5}).axes
    assert len(ax.patches) == 1
    (point,) = ax.get_lines()
    assert (list(point.get_xdata()), list(point.get_ydata())) == ([0.5], [1])
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["histogram", "median", "single value"]


def test_equal_values_fill_the_bin_in_the_middle():
    # The state before training; the range has no width of its own.
    (ax,) = plotting.plot_hyperparameters({"a": np.full(7, 1e-2)}).axes
    values, edges, baseline = ax.patches[0].get_data()
    (filled,) = np.flatnonzero(values < baseline)
    assert filled == NUM_BINS // 2
    assert edges[filled] < 1e-2 < edges[filled + 1]
    assert edges[-1] / edges[0] == pytest.approx(2)


def test_values_without_a_place_on_the_scale_are_counted():
    coefficients = np.array([0.0, -1.0, np.nan, np.inf, 0.1, 0.2])
    figure = plotting.plot_hyperparameters({"a": coefficients, "b": [-1, -2]})
    assert row_labels(figure) == ["a\nn = 6, 2 above 0", "b\nn = 2, 0 above 0"]
    (bars,) = figure.axes[0].patches
    np.testing.assert_allclose(bars.get_data().edges[[0, -1]], [0.1, 0.2])


@pytest.mark.parametrize("wrap", [hs.BilevelModel, lambda model: model])
def test_learner_and_plain_model_show_the_same(wrap):
    model = make_model()
    figure = plotting.plot_hyperparameters(wrap(model))
    expected = hs.BilevelModel(model).hyperparameter_values()
    assert row_labels(figure) == [
        f"{path}\nn = {count}"
        for path, count in zip(expected, (6, 1), strict=True)
    ]
    (point,) = figure.axes[0].get_lines()
    assert point.get_xdata() == [list(expected.values())[1]]


def test_hyperparameters_are_drawn_into_given_axes():
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert plotting.plot_hyperparameters({"a": [0.1, 0.2]}, right) is figure
    assert len(right.patches) == 1
    assert not left.has_data()


@pytest.mark.parametrize("learner", [{}, {"a": np.array([0.0, -1.0])}])
def test_hyperparameters_need_a_value_above_zero(learner):
    with pytest.raises(ValueError, match="`learner` must .*Received: hyper"):
        plotting.plot_hyperparameters(learner)


def test_model_that_is_not_built_is_refused():
    model = keras.Sequential([keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="none before it is built"):
        plotting.plot_hyperparameters(model)


def test_other_objects_have_no_hyperparameters():
    with pytest.raises(TypeError, match=r"`learner` must .*of type list"):
        plotting.plot_hyperparameters([1e-3])


# plot_history


def test_history_has_a_panel_for_each_kind_of_curve():
    figure = plotting.plot_history(LOGS)
    losses, norm, metrics = figure.axes
    titles = [ax.get_ylabel() for ax in figure.axes]
    assert titles == ["loss", "hypergradient norm", "metrics"]
    # By name, validation after training; what is no metric is in no panel.
    assert list(drawn_lines(losses)) == [
        "loss",
        "val_loss",
        "outer_loss",
        "val_outer_loss",
    ]
    assert list(drawn_lines(norm)) == ["hypergradient_norm"]
    assert list(drawn_lines(metrics)) == ["accuracy", "val_accuracy"]
    for ax in figure.axes:
        for key, curve in drawn_lines(ax).items():
            assert curve == ([1, 2, 3], LOGS[key])
    scales = [ax.get_yscale() for ax in figure.axes]
    assert scales == ["linear", "log", "linear"]
    assert [ax.get_xlabel() for ax in figure.axes] == ["", "", "epoch"]
    for ax in (losses, metrics):
        legend = [text.get_text() for text in ax.get_legend().get_texts()]
        assert legend == list(drawn_lines(ax))


def test_validation_is_dashed_in_the_color_of_its_training_curve():
    losses, _, metrics = plotting.plot_history(LOGS).axes
    style = {
        line.get_label(): (line.get_color(), line.get_linestyle())
        for line in [*losses.get_lines(), *metrics.get_lines()]
    }
    assert style["loss"] == ("C0", "-")
    assert style["outer_loss"] == ("C1", "-")
    assert style["val_outer_loss"] == ("C1", "--")
    assert style["accuracy"] == ("C0", "-")
    assert style["val_accuracy"] == ("C0", "--")


@pytest.mark.parametrize(
    ("keys", "titles"),
    [
        (["loss", "outer_loss"], ["loss"]),
        (["accuracy"], ["metrics"]),
        (["hypergradient_norm", "loss"], ["loss", "hypergradient norm"]),
    ],
)
def test_absent_curves_have_no_panel(keys, titles):
    figure = plotting.plot_history({key: LOGS[key] for key in keys})
    assert [ax.get_ylabel() for ax in figure.axes] == titles
    assert figure.axes[-1].get_xlabel() == "epoch"


def test_losses_of_single_outputs_are_losses():
    logs = {"loss": [3.0], "digit_loss": [1.0], "gloss": [2.0]}
    losses, metrics = plotting.plot_history(logs).axes
    assert list(drawn_lines(losses)) == ["digit_loss", "loss"]
    assert list(drawn_lines(metrics)) == ["gloss"]


def test_history_of_fit_has_its_own_epochs(rng):
    # Epochs that go on from 2 are the third to the sixth; every second one,
    # the fourth and the sixth, is validated.
    x, y = rng.normal(size=(8, 2)), rng.normal(size=(8, 1))
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    training = {"initial_epoch": 2, "epochs": 6, "validation_freq": 2}
    history = model.fit(x, y, validation_data=(x, y), verbose=0, **training)
    (ax,) = plotting.plot_history(history, validation_freq=2).axes
    assert drawn_lines(ax) == {
        "loss": ([3, 4, 5, 6], history.history["loss"]),
        "val_loss": ([4, 6], history.history["val_loss"]),
    }


def test_validation_of_some_epochs_asks_for_its_frequency():
    logs = {"loss": [3.0, 2.0, 1.0], "val_loss": [2.0]}
    message = "`history` must have 3 values of 'val_loss'.*Received: 1 values"
    with pytest.raises(ValueError, match=message):
        plotting.plot_history(logs)


def test_a_norm_of_zero_does_not_break_the_logarithmic_axis():
    figure = plotting.plot_history({"hypergradient_norm": [0.0, 1e-3, 1e-2]})
    assert figure._repr_png_()
    low, _ = figure.axes[0].get_ylim()
    assert 1e-4 < low < 1e-3  # the scale fits the norms above zero


def test_few_epochs_are_dots_and_one_is_visible():
    few = plotting.plot_history({"loss": [1.0]}).axes[0].get_lines()[0]
    many = plotting.plot_history({"loss": [1.0] * 31}).axes[0].get_lines()[0]
    assert few.get_marker() == "."
    assert many.get_marker() in ("", "None")


def test_epochs_are_whole_numbers():
    figure = plotting.plot_history({"loss": [1.0, 2.0]})
    ticks = figure.axes[0].get_xticks()
    np.testing.assert_array_equal(ticks, np.round(ticks))


def test_history_is_drawn_into_a_given_figure():
    figure = Figure()
    assert plotting.plot_history(LOGS, figure=figure) is figure
    assert len(figure.axes) == 3


@pytest.mark.parametrize(
    "history",
    [{}, {"loss": []}, {"learning_rate": [0.1]}, keras.callbacks.History()],
)
def test_empty_history_is_refused(history):
    with pytest.raises(ValueError, match="`history` must hold .*Received: his"):
        plotting.plot_history(history)


def test_other_objects_are_no_history():
    with pytest.raises(TypeError, match=r"`history` must be .*history=\[1.0\]"):
        plotting.plot_history([1.0])


# plot_regularization_map


def drawn_image(figure):
    (image,) = figure.axes[0].get_images()
    return image


def test_matrix_is_drawn_as_it_is(rng):
    values = rng.lognormal(-4, 1, (7, 5))
    figure = plotting.plot_regularization_map(tf.constant(values))
    image = drawn_image(figure)
    np.testing.assert_array_equal(image.get_array(), values)
    assert isinstance(image.norm, colors.LogNorm)
    assert image.get_clim() == (values.min(), values.max())
    ax, bar = figure.axes
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("output", "input")
    assert ax.get_aspect() == "auto"
    assert (bar.get_ylabel(), bar.get_yscale()) == ("learned strength", "log")


def test_vector_is_arranged_as_a_picture_with_square_pixels():
    values = np.geomspace(1e-4, 1, 12)
    figure = plotting.plot_regularization_map(values, (3, 4), label="L2")
    np.testing.assert_array_equal(
        drawn_image(figure).get_array(), values.reshape(3, 4)
    )
    assert figure.axes[0].get_aspect() == 1
    assert figure.axes[0].get_xlabel() == ""
    assert figure.axes[1].get_ylabel() == "L2"


def test_outputs_are_averaged_geometrically_where_inputs_are_a_picture():
    values = np.outer(np.arange(1.0, 7.0), [1e-4, 1e-2])  # means: 1e-3 * input
    figure = plotting.plot_regularization_map(values, (2, 3))
    expected = 1e-3 * np.array([[1, 2, 3], [4, 5, 6]])
    # float64, logarithm and back
    np.testing.assert_allclose(
        drawn_image(figure).get_array(), expected, rtol=1e-12
    )


@pytest.mark.parametrize("window", [(3,), (3, 2), (2, 3, 2)])
def test_window_of_a_convolution_is_averaged_geometrically(rng, window):
    values = rng.lognormal(-4, 1, (*window, 5, 4))
    image = drawn_image(plotting.plot_regularization_map(values))
    expected = np.prod(values.reshape(-1, 5, 4), axis=0) ** (
        1 / np.prod(window)
    )
    np.testing.assert_allclose(image.get_array(), expected, rtol=1e-12)


def test_inputs_of_a_convolution_are_arranged_too(rng):
    values = np.broadcast_to(np.arange(1.0, 7.0)[:, None], (3, 3, 6, 4))
    image = drawn_image(plotting.plot_regularization_map(values, (2, 3)))
    np.testing.assert_allclose(
        image.get_array(), [[1, 2, 3], [4, 5, 6]], rtol=1e-12
    )


@pytest.mark.parametrize(
    ("limits", "extend"),
    [
        ((1e-3, 1.0), "neither"),
        ((2e-3, 1.0), "min"),
        ((1e-3, 0.5), "max"),
        ((2e-3, 0.5), "both"),
    ],
)
def test_limits_are_those_of_the_colors(limits, extend):
    values = np.array([[1e-3, 1e-2], [1e-1, 1.0]])
    figure = plotting.plot_regularization_map(values, limits=limits)
    image = drawn_image(figure)
    assert image.get_clim() == limits
    assert image.colorbar.extend == extend
    np.testing.assert_array_equal(image.get_array(), values)  # not clipped


def test_equal_strengths_have_the_color_in_the_middle():
    image = drawn_image(plotting.plot_regularization_map(np.full((2, 3), 0.01)))
    np.testing.assert_allclose(image.norm(image.get_array()), 0.5)


def test_map_is_drawn_into_given_axes():
    figure = Figure()
    left, right = figure.subplots(1, 2)
    returned = plotting.plot_regularization_map(np.ones((2, 2)), ax=right)
    assert returned is figure
    assert len(right.get_images()) == 1
    assert not left.has_data()


@pytest.mark.parametrize("shape", [(2, 4), (9,), 9, (3, 3, 1)])
def test_shape_must_fit(shape):
    message = r"`shape` must be .*inputs, 9\. Received: shape="
    with pytest.raises(ValueError, match=message):
        plotting.plot_regularization_map(np.ones(9), shape)


@pytest.mark.parametrize("shape", [(), (9,)])
def test_vector_and_number_need_a_shape(shape):
    with pytest.raises(ValueError, match="`shape` must be given .*Received"):
        plotting.plot_regularization_map(np.ones(shape))


@pytest.mark.parametrize("wrong", [0.0, -1.0, np.nan, np.inf])
def test_strengths_off_the_scale_are_refused(wrong):
    values = np.ones((2, 3))
    values[1, 1] = wrong
    message = r"`values` must be finite and above 0.*Received: 1 of 6"
    with pytest.raises(ValueError, match=message):
        plotting.plot_regularization_map(values)


def test_empty_map_is_refused():
    with pytest.raises(ValueError, match="`values` must .*Received: 0 of 0"):
        plotting.plot_regularization_map(np.ones((0, 3)))


@pytest.mark.parametrize(
    "limits", [(0.0, 1.0), (1.0, 0.1), (1.0, 1.0), (0.1, np.inf)]
)
def test_limits_must_be_in_order_and_above_zero(limits):
    with pytest.raises(ValueError, match=r"`limits` must be .*Received: lim"):
        plotting.plot_regularization_map(np.ones((2, 2)), limits=limits)


# What all have in common


PLOTS = {
    "hyperparameters": lambda: plotting.plot_hyperparameters({"a": [0.1, 0.2]}),
    "history": lambda: plotting.plot_history(LOGS),
    "map": lambda: plotting.plot_regularization_map(np.ones((2, 2))),
}


@pytest.mark.parametrize("name", PLOTS)
def test_nothing_global_changes(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # unavailable
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # other tests may have left their mark
        before = matplotlib.rcParams.copy()
        PLOTS[name]()._repr_png_()
        assert matplotlib.rcParams.copy() == before


@pytest.mark.parametrize("name", PLOTS)
def test_notebooks_show_the_figure_also_after_a_round_trip(name):
    # IPython asks an object for `_repr_png_`; a plain Figure has none.
    figure = PLOTS[name]()
    assert isinstance(figure, Figure)
    for shown in (figure, pickle.loads(pickle.dumps(figure))):
        assert shown._repr_png_().startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize("name", PLOTS)
def test_missing_matplotlib_is_named_with_the_way_out(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(
        ImportError, match=r"pip install keras-hposgld\[plots\]"
    ):
        PLOTS[name]()


def bars_of(figure):
    """The name, place and length of each bar."""
    (ax,) = figure.axes
    names = [label.get_text() for label in ax.get_yticklabels()]
    bars = [
        (bar.get_y() + bar.get_height() / 2, bar.get_width())
        for bar in ax.patches
    ]
    return dict(zip(names, bars, strict=True))


def test_strengths_are_bars_by_name_the_weakest_first():
    names = ["age", "weight", "shoe size"]
    figure = hs.plotting.plot_strengths([0.4, 0.02, 3.0], names)
    bars = bars_of(figure)
    assert [*bars] == ["weight", "age", "shoe size"]
    np.testing.assert_allclose(
        [*bars.values()], [(0, 0.02), (1, 0.4), (2, 3.0)]
    )
    (ax,) = figure.axes
    assert ax.get_xscale() == "log" and ax.yaxis_inverted()


def test_strengths_of_a_matrix_count_by_their_geometric_mean():
    bars = bars_of(hs.plotting.plot_strengths([[1.0, 4.0], [0.1, 0.1]]))
    assert bars == {
        "1": (0.0, pytest.approx(0.1)),
        "0": (1.0, pytest.approx(2.0)),
    }


def test_of_many_strengths_both_ends_are_drawn():
    values = np.geomspace(1e-3, 1.0, 30)
    figure = hs.plotting.plot_strengths(values, most=6)
    bars = bars_of(figure)
    assert [*bars] == ["0", "1", "2", "27", "28", "29"]
    assert bars["27"][0] - bars["2"][0] == 2
    (text,) = figure.axes[0].texts
    assert "24 more" in text.get_text()


@pytest.mark.parametrize("values", [[1.0, 0.0], 0.3, [1.0, np.nan]])
def test_strengths_have_to_be_above_zero(values):
    with pytest.raises(ValueError, match="`values` must be"):
        hs.plotting.plot_strengths(values)


def test_each_strength_has_one_name():
    with pytest.raises(ValueError, match="`names` must have.*1 names and 2"):
        hs.plotting.plot_strengths([1.0, 2.0], ["a"])


def test_strengths_are_drawn_into_given_axes():
    ax = matplotlib.figure.Figure().subplots()
    assert hs.plotting.plot_strengths([1.0, 2.0], ax=ax) is ax.figure


def test_table_of_hyperparameters_is_a_data_frame_too(capsys):
    pandas = pytest.importorskip("pandas")
    strength = hs.regularizers.LearnableL2(0.25, granularity="input")
    layer = keras.layers.Dense(3, kernel_regularizer=strength, name="first")
    learner = hs.BilevelModel(keras.Sequential([keras.Input((5,)), layer]))
    frame = learner.hyperparameter_frame()
    assert isinstance(frame, pandas.DataFrame)
    (row,) = frame.to_dict("records")
    assert row["path"].endswith("first/kernel/l2")
    assert (row["granularity"], row["number"]) == ("input", 5)
    for column in ("minimum", "median", "maximum"):
        assert row[column] == pytest.approx(0.25)
    learner.hyperparameter_summary()
    assert f"{row['path']}  input" in capsys.readouterr().out
