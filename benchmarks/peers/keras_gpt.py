"""Keras: the GPT-2 of keras_hub in `model.fit`; settings BACKEND-shipped, BACKEND-bf16, BACKEND-bf16-compile.

Shipped is `compile` with its defaults: float32, jitted with JAX, eager with torch. bf16 is the policy
`mixed_bfloat16`.
"""

from __future__ import annotations

import os
import sys
from typing import Any

os.environ["KERAS_BACKEND"] = sys.argv[sys.argv.index("--setting") + 1].partition("-")[0]

import keras
import keras_hub
import numpy as np
from measured import BATCH, LENGTH, asked, windows


class Clock(keras.callbacks.Callback):
    def __init__(self, measured: Any) -> None:
        super().__init__()
        self.measured = measured

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002
        # Reading the loss waits for the step: JAX hands out results before they are computed.
        self.measured.step_ended(float((logs or {})["loss"]))


def main() -> None:
    options = asked()
    shape = options.shape
    how = options.setting.partition("-")[2]
    if "bf16" in how:
        keras.config.set_dtype_policy("mixed_bfloat16")
    rows, vocab_size = windows(options.text, more=1)
    table = np.array(rows, dtype="int32")
    table = table[np.random.default_rng(0).permutation(len(table))[: options.total * BATCH]]
    assert len(table) == options.total * BATCH, "more steps than the text has windows"
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=vocab_size, num_layers=shape.layers, num_heads=shape.heads, hidden_dim=shape.width,
        intermediate_dim=4 * shape.width, dropout=0.0, max_sequence_length=LENGTH,
    )  # fmt: skip
    logits = backbone.token_embedding(backbone.output, reverse=True)
    model = keras.Model(backbone.input, logits)
    settings = {"jit_compile": True} if "compile" in how else {}
    model.compile(
        optimizer=keras.optimizers.AdamW(1e-3, weight_decay=0.1, clipnorm=1.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **settings,
    )
    inputs = {"token_ids": table[:, :-1], "padding_mask": np.ones_like(table[:, :-1])}
    model.fit(
        inputs, table[:, 1:], batch_size=BATCH, epochs=1, verbose=0, callbacks=[Clock(options.measured)]
    )
    options.measured.write(
        dtype="bfloat16" if "bf16" in how else "float32",
        parameters=model.count_params(),
        settings={
            "backend": keras.backend.backend(),
            "policy": keras.config.dtype_policy().name,
            "jit_compile": bool(model.jit_compile),
        },
    )


if __name__ == "__main__":
    main()
