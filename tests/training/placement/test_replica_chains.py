"""Every estimator's chain on two replicas is the chain on one, in float64."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_hposgld as hs
from keras_hposgld.estimators.registry import REGISTRY
from keras_hposgld.training.placement import placement_of
from keras_hposgld.training.placement.replicas import Replicas

NUM_STEPS = 3
INTEGER = tf.int32.as_datatype_enum
E = hs.estimators
ESTIMATORS = {
    "hpo_sgld": lambda n: E.HPOSGLD(1, n - 1),
    "adjoint_sgld": lambda n: E.AdjointSGLD(1, n - 1),
    "evidence": lambda n: E.Evidence(1, n - 1),
    "score_covariance": lambda n: E.ScoreCovariance(1, n - 1),
    "ift_neumann": lambda n: E.IFTNeumann(n, num_steps=n),
    "ift_cg": lambda n: E.IFTCG(n, damping=0.1, num_steps=n),
    "rmd": lambda n: E.RMD(num_steps=n),
    "rmd_fo": lambda n: E.RMDFO(n),
    "fmd": lambda n: E.FMD(n),
    "first_order": lambda n: E.FirstOrder(n),
}
# Clipping comes after the mean over the replicas, and the decay is in no mean.
SAMPLERS = {
    "sgld": lambda: hs.SGLD(0.05, 0.1, seed=1, momentum=0.7, clipnorm=0.9),
    "adamw": lambda: keras.optimizers.AdamW(0.05, weight_decay=0.4),
}
# Those that differentiate the chain have one that starts at a hyperparameter.
START_IS_LEARNED = {"hpo_sgld", "rmd", "fmd", "first_order"}


def error(batch, params):
    x, y = batch
    return (tf.tanh(tf.linalg.matvec(x, params[0])) - y) ** 2


# With learned regularizers the mixed derivative is the same on all replicas.
# Here it is not, and v has to be averaged before it meets the derivative.
def inner(hypers, params, batch, carry):
    (seen,), metrics = carry
    x, _ = batch
    fit = tf.reduce_mean(tf.exp(hypers[0] * x[:, 0]) * error(batch, params))
    penalty = tf.reduce_sum(tf.exp(hypers[1]) * params[0] ** 2)
    seen = 0.9 * seen + 0.1 * tf.reduce_mean(x, axis=0)
    return fit + 0.1 * penalty, ([seen], metrics)


def outer(hypers, params, batch, carry):
    scale = tf.reduce_mean(tf.exp(0.1 * hypers[0] * batch[0][:, 1]))
    return scale + tf.reduce_mean(error(batch, params))


def decay(hypers, params):
    return [hypers[0] * params[0]]


class Carrying(hs.BilevelProblem):
    """A problem whose carry begins anew on each replica, as a model's does."""

    @property
    def initial_carry(self):
        return [tf.zeros([3], tf.float64)], []


class Problem:
    """A chain of an estimator, to be run under a placement."""

    def __init__(self, alias, sampler="sgld", num_steps=NUM_STEPS):
        learned = alias in START_IS_LEARNED
        self.problem = Carrying(
            inner,
            outer,
            initial_params=(lambda hypers: [hypers[1]]) if learned else None,
            initial_carry=(),
            # The evidence is that of a density.
            decay=None if alias == "evidence" else decay,
            log_normalizer=lambda hypers, t: -0.5 * tf.reduce_sum(hypers[1]),
        )
        self.estimator = ESTIMATORS[alias](num_steps)
        self.sampler = hs.samplers.get(SAMPLERS[sampler]())
        rng = np.random.default_rng(0)
        self.levels = [
            (
                rng.normal(size=(num_steps, 8, 3)),
                rng.normal(size=(num_steps, 8)),
            )
            for _ in range(2)
        ]

    def make_chain(self, average):
        return E.Chain(
            self.problem,
            [tf.constant(0.3, tf.float64), tf.ones(3, tf.float64) / 2],
            self.sampler,
            first_step=0,
            seed=tf.constant([1, 2]),
            average=average,
        )

    def run(self, placement):
        """The tensors of the estimate."""
        number = placement.num_replicas

        def share(array):
            if number == 1:
                return tf.constant(array)
            distribute = (
                placement.strategy.experimental_distribute_values_from_function
            )
            return distribute(
                lambda context: tf.constant(
                    np.split(array, number, axis=1)[
                        context.replica_id_in_sync_group
                    ]
                )
            )

        estimate = placement.run_chain(
            self.estimator,
            self.make_chain,
            lambda: [tf.ones(3, tf.float64)],
            *tf.nest.map_structure(share, self.levels),
        )
        return [x for x in tf.nest.flatten(estimate) if x is not None]


def assert_same(values, expected):
    assert len(values) == len(expected) >= 6
    for a, b in zip(values, expected, strict=True):
        # Sums in another order; differences over the temperature enlarge it.
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)


def test_every_registered_estimator_is_listed_here():
    assert set(ESTIMATORS) == set(REGISTRY.aliases)


def on_two_replicas(problem, mirrored):
    """The chain of a problem as a graph."""
    two = placement_of(mirrored)
    return tf.function(lambda: problem.run(two), autograph=False)


@pytest.mark.parametrize(
    "alias",
    [
        pytest.param(alias, marks=pytest.mark.slow if alias == "fmd" else [])
        for alias in ESTIMATORS
    ],
)
def test_two_replicas_run_the_chain_of_one(mirrored, alias):
    problem = Problem(alias)
    expected = problem.run(placement_of(None))
    assert_same(on_two_replicas(problem, mirrored)(), expected)
    assert_same(problem.run(placement_of(mirrored)), expected)  # eagerly


@pytest.mark.slow
@pytest.mark.parametrize("alias", ["ift_neumann", "rmd", "fmd"])
def test_two_replicas_run_the_chain_of_an_optimizer(mirrored, alias):
    problem = Problem(alias, "adamw")
    expected = problem.run(placement_of(None))
    assert_same(on_two_replicas(problem, mirrored)(), expected)


@pytest.mark.parametrize("alias", ["ift_cg", "rmd"])
def test_replicas_that_average_in_loops_have_the_second_one_too(alias):
    # The way of TPUs: the whole chain is one call. Here on one device, where
    # nothing has to be averaged.
    problem = Problem(alias)
    placement = Replicas(tf.distribute.OneDeviceStrategy("/cpu:0"))
    placement.averages_in_loops = True
    assert_same(problem.run(placement), problem.run(placement_of(None)))


@pytest.mark.parametrize("alias", ["ift_cg", "rmd", "fmd"])
def test_graph_of_two_replicas_does_not_grow_with_the_chain(mirrored, alias):
    def size(num_steps):
        function = on_two_replicas(
            Problem(alias, num_steps=num_steps), mirrored
        )
        graph = function.get_concrete_function().graph.as_graph_def()
        return len(graph.node) + sum(
            len(function.node_def) for function in graph.library.function
        )

    assert size(60) == size(6)


def test_what_a_replica_carries_stays_on_its_device(mirrored):
    # TensorFlow would send the state of the second replica to the first device
    # and back at each step, for RMD the whole path.
    function = on_two_replicas(Problem("rmd"), mirrored).get_concrete_function()
    bodies = [
        body
        for body in function.graph.as_graph_def().library.function
        if re.match(r"while_(\d+_)?body", body.signature.name)
    ]
    assert len(bodies) == 2  # along the chain, and back
    for body in bodies:
        nodes = {node.name: node for node in body.node_def}
        devices = [
            nodes[returned].device[-5:]
            for returned in (x.split(":")[0] for x in body.ret.values())
            if returned in nodes and nodes[returned].attr["T"].type != INTEGER
        ]
        # All but what the loop itself counts.
        assert set(devices) == {"CPU:0", "CPU:1"}
        assert devices.count("CPU:0") == devices.count("CPU:1") >= 5
