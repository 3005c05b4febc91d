"""Features of real data by frozen pretrained networks, written once.

    python experiments/real/features.py trec --data FOLDER --network FOLDER
        --out trec_minilm.npz
    python experiments/real/features.py cifar10n --data FOLDER --network NPZ
        --out cifar10n_effnet.npz

`--data` names the folder with `trec_weak.npz` and `cifar10n.npz`: texts as
`train_text`, `valid_text` and `test_text`; images as JPEG files in one array,
`jpeg` with `offsets`, and `test_jpeg` with `test_offsets`. `minilm.py` and
`efficientnet_lite0.py` say where the networks come from. Rows of the features
have the order of the texts and images. They are float32.
"""

import argparse
import io
import pathlib

import numpy as np

SIZE = 96  # height and width that the network sees; the images have 32


def trec(data, network):
    """MiniLM's features of the three parts, `{part: array}`."""
    import minilm

    texts = np.load(data / "trec_weak.npz")
    return {
        part: minilm.encode(texts[f"{part}_text"].tolist(), network)
        for part in ("train", "valid", "test")
    }


def cifar10n(data, network, size=SIZE):
    """EfficientNet-Lite0's features of training and test images."""
    import efficientnet_lite0

    images = np.load(data / "cifar10n.npz")
    trunk = efficientnet_lite0.network(size, network)
    return {
        part: trunk.predict(
            decoded(images, part, size), batch_size=100, verbose=0
        )
        for part in ("train", "test")
    }


def decoded(images, part, size):
    """Images of a part, resized: uint8 array `(images, size, size, 3)`."""
    from PIL import Image

    name = "test_" if part == "test" else ""
    jpeg, offsets = images[f"{name}jpeg"], images[f"{name}offsets"]
    rows = []
    for start, end in zip(offsets[:-1], offsets[1:], strict=True):
        image = Image.open(io.BytesIO(jpeg[start:end].tobytes()))
        resized = image.resize((size, size), Image.Resampling.BICUBIC)
        rows.append(np.asarray(resized))
    return np.stack(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("of", choices=["trec", "cifar10n"])
    for name in ("data", "network", "out"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    make = {"trec": trec, "cifar10n": cifar10n}[arguments.of]
    np.savez(arguments.out, **make(arguments.data, arguments.network))


if __name__ == "__main__":
    main()
