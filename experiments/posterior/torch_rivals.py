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


def laplace(x, y, x_test, task, seed, *, learn):
    """A network with Laplace's approximation of its posterior.

    Args:
        learn: Function `(torch, model, batches, likelihood)`. It trains the
            model and returns the posterior.
    """
    torch = needs("laplace")
    torch.manual_seed(seed)
    regression = task == "regression"
    x, x_test = torch.from_numpy(x), torch.from_numpy(x_test)
    y = torch.as_tensor(y, dtype=torch.float32 if regression else torch.long)
    model = multilayer(torch, x.shape[1], 1 if regression else y.max() + 1)
    batches = batches_of(torch, x, y[:, None] if regression else y)
    likelihood = "regression" if regression else "classification"
    posterior = learn(torch, model, batches, likelihood)
    laws = [posterior(part) for part in x_test.split(TEST_BATCH)]
    if not regression:
        return torch.cat(laws).detach().double().numpy()
    mean, variance = (
        torch.cat([law[place].detach().ravel() for law in laws]).numpy()
        for place in (0, 1)
    )
    return mean, np.sqrt(variance + float(posterior.sigma_noise) ** 2)


def epochs_of(batches):
    return min(MOST_EPOCHS, -(-NUM_STEPS // len(batches)))


def online(torch, model, batches, likelihood, *, hessian, prior):
    """Strengths and noise are learned while the network trains.

    This is `marglik_training` (Immer and others, ICML 2021) with its defaults,
    but for a tenth of the epochs before, and a rate that falls. The strengths
    move every fifth epoch, ten steps each. On a split of concrete, with shorter
    training, every epoch gave about the same in two to three times the time.

    Args:
        hessian: Its structure, "kron" or "diag".
        prior: "layerwise", one strength a tensor, or "diag", one a weight.
    """
    from laplace.marglik_training import marglik_training

    num_inputs = model[0].in_features
    if hessian == "kron" and num_inputs > MANY_INPUTS:
        raise LeftOut(f"KFAC of {num_inputs} inputs takes too long")
    num_epochs = epochs_of(batches)
    num_steps = num_epochs * len(batches)
    posterior, *_ = marglik_training(
        model,
        batches,
        likelihood,
        hessian_structure=hessian,
        prior_structure=prior,
        n_epochs=num_epochs,
        n_epochs_burnin=num_epochs // 10,
        marglik_frequency=5,
        optimizer_kwargs={"lr": 1e-2},
        scheduler_cls=torch.optim.lr_scheduler.CosineAnnealingLR,
        scheduler_kwargs={"T_max": num_steps, "eta_min": 1e-5},
    )
    return posterior


def afterwards(torch, model, batches, likelihood):
    """The network is trained as usual; then its last layer has a posterior.

    This is the default of laplace-torch: KFAC of the last layer. One strength
    and the noise are learned by its evidence, as the package's guide does it.
    """
    from laplace import Laplace

    num_epochs = epochs_of(batches)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_epochs)
    regression = likelihood == "regression"
    loss = torch.nn.MSELoss() if regression else torch.nn.CrossEntropyLoss()
    for _ in range(num_epochs):
        for x, y in batches:
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()
        schedule.step()
    posterior = Laplace(model, likelihood)
    posterior.fit(batches)
    logs = torch.zeros(2, requires_grad=True)  # of the strength and the noise
    optimizer = torch.optim.Adam([logs], 0.1)
    for _ in range(200):
        optimizer.zero_grad()
        strength, noise = logs.exp().split(1)
        evidence = posterior.log_marginal_likelihood(
            strength, noise if regression else None
        )
        (-evidence).backward()
        optimizer.step()
    return posterior


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


def _laplace(learn, **options):
    return functools.partial(laplace, learn=functools.partial(learn, **options))


METHODS = {
    "laplace_kfac": _laplace(online, hessian="kron", prior="layerwise"),
    "laplace_diag": _laplace(online, hessian="diag", prior="layerwise"),
    "laplace_ard": _laplace(online, hessian="diag", prior="diag"),
    "laplace_last": _laplace(afterwards),
    "lassonet": lassonet,
}
