"""The registry of estimators."""

import pytest

import keras_hposgld as hs


def test_aliases_and_configs_give_equal_estimators():
    estimator = hs.estimators.HPOSGLD(3, 4, "telescoped")
    copy = hs.estimators.deserialize(hs.estimators.serialize(estimator))
    assert copy.get_config() == estimator.get_config()
    again = hs.estimators.get(hs.estimators.serialize(estimator))
    assert again.get_config() == estimator.get_config()
    assert hs.estimators.get(estimator) is estimator
    default = hs.estimators.get("hpo_sgld")
    assert (default.burn_in, default.num_samples) == (10, 10)
    assert repr(estimator) == (
        "HPOSGLD(burn_in=3, num_samples=4, curvature='telescoped', "
        "outer_every=1)"
    )


def test_unknown_alias_lists_the_known_ones():
    with pytest.raises(ValueError, match="Unknown estimator.*'hpo_sgld'"):
        hs.estimators.get("hpo-sgld")
    with pytest.raises(TypeError, match="Received: 3 of type int"):
        hs.estimators.get(3)
