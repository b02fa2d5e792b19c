"""Keras: the networks of task_speed.py's cases in `model.fit` on arrays that luban prepared.

    python keras_tasks.py CASE ARRAYS --batch N --steps N --setting BACKEND-shipped|BACKEND-bf16 --out FILE

Shipped is `compile` with its defaults: float32, jitted with JAX, eager with torch. Texts and tags have one
length, as in Keras' own examples: that of the 95th percentile, so that few places are padding. Writes the ends
of the steps.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = sys.argv[sys.argv.index("--setting") + 1].partition("-")[0]

import keras
import numpy as np
from keras import layers


class Clock(keras.callbacks.Callback):
    """Notes when each step ended, and ends training after so many."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps, self.ends = steps, list[float]()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        del batch
        float(
            (logs or {})["loss"]
        )  # reading the loss waits for the step: JAX hands out results before they are there
        self.ends.append(time.monotonic())
        self.model.stop_training = len(self.ends) >= self.steps


def texts(data: Any) -> tuple[keras.Model, Any, Any]:
    """A CNN over words (Kim 2014): windows of 3, 4 and 5 words, 128 filters each."""
    ids = keras.Input((data["ids"].shape[1],), dtype="int32")
    x = layers.Dropout(0.5)(layers.Embedding(int(data["vocab_size"]), 128)(ids))
    found = [
        layers.GlobalMaxPooling1D()(layers.Conv1D(128, size, activation="relu")(x)) for size in (3, 4, 5)
    ]
    out = layers.Dense(int(data["classes"]))(layers.Dropout(0.5)(layers.Concatenate()(found)))
    return keras.Model(ids, out), data["ids"], data["label"]


def tags(data: Any) -> tuple[keras.Model, Any, Any]:
    """Word embeddings, an LSTM in two directions, a tag for each place; padding counts in neither."""
    ids = keras.Input((data["ids"].shape[1],), dtype="int32")
    x = layers.Dropout(0.5)(layers.Embedding(int(data["vocab_size"]), 128)(ids))
    x = layers.Bidirectional(layers.LSTM(128, return_sequences=True))(x)
    return (
        keras.Model(ids, layers.Dense(int(data["classes"]))(layers.Dropout(0.5)(x))),
        data["ids"],
        data["label"],
    )


def tables(data: Any) -> tuple[keras.Model, Any, Any]:
    """Two hidden layers of 256 over scaled numbers and one-hot categories."""
    numbers = keras.Input((data["numbers"].shape[1],))
    codes = keras.Input((data["categories"].shape[1],), dtype="int32")
    scaled = layers.Normalization(mean=data["numbers"].mean(0), variance=data["numbers"].var(0) + 1e-6)(
        numbers
    )
    parts = [scaled]
    for column, size in enumerate(data["sizes"].tolist()):
        parts.append(layers.CategoryEncoding(size, output_mode="one_hot")(codes[:, column : column + 1]))
    x = layers.Concatenate()(parts)
    for _ in range(2):
        x = layers.Dropout(0.1)(layers.Dense(256, activation="relu")(x))
    return (
        keras.Model([numbers, codes], layers.Dense(int(data["classes"]))(x)),
        [data["numbers"], data["categories"]],
        data["label"],
    )


def pictures(data: Any) -> tuple[keras.Model, Any, Any]:
    """luban's `small`: four convolutions with batch norm, two of them halve the picture."""
    stack: list[Any] = [keras.Input(data["image"].shape[1:]), layers.Rescaling(1 / 255.0)]
    for number, width in enumerate((32, 64, 64, 64)):
        stack.append(layers.Conv2D(width, 3, padding="same", use_bias=False))
        if number < 2:
            stack.append(layers.MaxPooling2D(2))
        stack += [layers.BatchNormalization(), layers.ReLU()]
    stack += [layers.GlobalMaxPooling2D(), layers.Dense(int(data["classes"]))]
    return keras.Sequential(stack), data["image"], data["label"]


CASES = {"texts": texts, "tags": tags, "tables": tables, "pictures": pictures}


def main() -> None:
    """Train and write when each step ended."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("case", choices=CASES)
    parser.add_argument("arrays", type=Path)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--setting", required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.setting.endswith("bf16"):
        keras.config.set_dtype_policy("mixed_bfloat16")
    keras.utils.set_random_seed(0)
    with np.load(options.arrays) as file:
        data = dict(file)
    model, inputs, targets = CASES[options.case](data)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    model.compile(optimizer=keras.optimizers.AdamW(1e-3), loss=loss)
    clock = Clock(options.steps)
    model.fit(inputs, targets, batch_size=options.batch, epochs=10_000, verbose=0, callbacks=[clock])
    found = {
        "ends": clock.ends,
        "parameters": model.count_params(),
        "policy": keras.config.dtype_policy().name,
    }
    options.out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
