"""What people do today, with PyTorch: laplace-torch and LassoNet.

    pip install torch==2.13.0 laplace-torch==0.3 lassonet==0.0.21

The functions are those of `rivals.py`. The packages are imported when one is
called: they are optional. None of them needs torchvision here: where its build
does not fit that of torch, uninstall it.
"""

import functools
import importlib.util

import numpy as np
from posterior.left_out import LeftOut
from posterior.rivals import constant
from posterior.rivals import folds_of
from posterior.rivals import HIDDEN
from sklearn.model_selection import train_test_split

NEEDED = {"laplace": "laplace-torch", "lassonet": "lassonet"}
BATCH = 128
NUM_STEPS = 5000  # of the network
MOST_EPOCHS = 1000
TEST_BATCH = 64
PATH: dict = {}  # what differs from LassoNet's defaults: nothing
# From so many inputs on, an eigendecomposition an epoch takes too long.
MANY_INPUTS = 1500
MANY_INPUTS_OF_A_PATH = 50


def needs(module):
    """PyTorch, on one thread; raises if the package is missing."""
    if importlib.util.find_spec(module) is None:
        raise LeftOut(f"pip install {NEEDED[module]}")
    import torch

    torch.set_num_threads(1)
    return torch


def multilayer(torch, num_inputs, num_outputs):
    """The network of `rivals.network`, in PyTorch."""
    layers, width = [], num_inputs
    for size in HIDDEN:
        layers += [torch.nn.Linear(width, size), torch.nn.ReLU()]
        width = size
    return torch.nn.Sequential(*layers, torch.nn.Linear(width, num_outputs))


def batches_of(torch, x, y):
    """Shuffled batches. They are drawn as a whole, which is fast."""
    from torch.utils import data

    examples = data.TensorDataset(x, y)
    places = data.RandomSampler(examples)
    batches = data.BatchSampler(places, min(BATCH, len(x)), drop_last=False)
    return data.DataLoader(examples, sampler=batches, batch_size=None)


def laplace(x, y, x_test, task, seed, *, hessian, prior):
    """Strengths and noise by the evidence of Laplace's approximation.

    They are learned while the network trains (`marglik_training`: Immer and
    others, ICML 2021), with that function's defaults of the strengths' updates.

    Args:
        hessian: Its structure, "kron" or "diag".
        prior: "layerwise", one strength a tensor, or "diag", one a weight.
    """
    torch = needs("laplace")
    if hessian == "kron" and x.shape[1] > MANY_INPUTS:
        raise LeftOut(f"KFAC of {x.shape[1]} inputs takes too long")
    from laplace.marglik_training import marglik_training

    torch.manual_seed(seed)
    regression = task == "regression"
    x, x_test = torch.from_numpy(x), torch.from_numpy(x_test)
    y = torch.as_tensor(y, dtype=torch.float32 if regression else torch.long)
    model = multilayer(torch, x.shape[1], 1 if regression else y.max() + 1)
    batches = batches_of(torch, x, y[:, None] if regression else y)
    num_epochs = min(MOST_EPOCHS, -(-NUM_STEPS // len(batches)))
    num_steps = num_epochs * len(batches)
    posterior, *_ = marglik_training(
        model,
        batches,
        "regression" if regression else "classification",
        hessian_structure=hessian,
        prior_structure=prior,
        n_epochs=num_epochs,
        n_epochs_burnin=num_epochs // 10,
        optimizer_kwargs={"lr": 1e-2},
        scheduler_cls=torch.optim.lr_scheduler.CosineAnnealingLR,
        scheduler_kwargs={"T_max": num_steps, "eta_min": 1e-5},
    )
    laws = [posterior(part) for part in x_test.split(TEST_BATCH)]
    if not regression:
        return torch.cat(laws).detach().double().numpy()
    mean, variance = (
        torch.cat([law[place].detach().ravel() for law in laws]).numpy()
        for place in (0, 1)
    )
    return mean, np.sqrt(variance + float(posterior.sigma_noise) ** 2)


def lassonet(x, y, x_test, task, seed):
    """A network whose inputs are selected, along a path of strengths.

    The strength is chosen by cross-validation, or with more inputs by a fifth
    of the examples that is held out: a path takes long then. All else is the
    package's default, the network too. The noise of a regression is that of the
    examples left out, at the chosen strength.
    """
    torch = needs("lassonet")
    import lassonet as package

    torch.manual_seed(seed)
    regression = task == "regression"
    kind = "Regressor" if regression else "Classifier"
    options = {"verbose": 0, "random_state": seed, "torch_seed": seed, **PATH}
    y = y.astype("float32") if regression else y
    if x.shape[1] > MANY_INPUTS_OF_A_PATH:
        model = getattr(package, f"LassoNet{kind}")(**options)
        variance = _held_out(model, x, y, task, seed)
    else:
        folds = folds_of(x, y, task, seed)
        model = getattr(package, f"LassoNet{kind}CV")(cv=folds, **options)
        model.fit(x, y)
        # Its score is R squared, and the targets have unit variance.
        variance = 1 - model.best_cv_score_
    if regression:
        return constant(model.predict(x_test).ravel(), variance)
    return model.predict_proba(x_test).astype(float)


def _held_out(model, x, y, task, seed):
    """Loads the best weights of a path; returns their loss on what was held."""
    inner, held = train_test_split(
        np.arange(len(y)),
        test_size=0.2,
        stratify=None if task == "regression" else y,
        random_state=seed,
    )
    path = model.path(
        *(x[inner], y[inner]),
        X_val=x[held],
        y_val=y[held],
        return_state_dicts=True,
    )
    best = min(path, key=lambda point: point.val_loss)
    model.load(best)
    return best.val_loss


METHODS = {
    "laplace_kfac": functools.partial(
        laplace, hessian="kron", prior="layerwise"
    ),
    "laplace_diag": functools.partial(
        laplace, hessian="diag", prior="layerwise"
    ),
    "laplace_ard": functools.partial(laplace, hessian="diag", prior="diag"),
    "lassonet": lassonet,
}
