"""What others make of the rows that a luban run was given: the peers of `make bench-tasks`.

    python benchmarks/task_peers.py PEER RUN [--minutes M] [--seed N]

reads the rows of RUN, split as luban split them (for a run over folds the rows of each fold), trains the peer, and
prints its figures on the test rows as one line of JSON. A peer learns from the training rows; where nothing has to be
chosen, from those held out for validation too. Neural peers stop when the minutes are over, as luban does.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luban.data.row_sets import PreparedRows
from luban.data.row_store import RowSet

PENALTIES = (0.25, 1.0, 4.0, 16.0, 64.0)
"""Inverse strengths of the penalty that logistic regression chooses from, on validation rows."""


@dataclass(frozen=True)
class Answer:
    """What a peer reached.

    Attributes:
        figures: on the test rows. seconds: of training, choosing included. rows: seen in it, each as often as it was.
        note: settings that were chosen, or how far training came.
    """

    figures: dict[str, float]
    seconds: float
    rows: int
    note: str


@dataclass(frozen=True)
class Budget:
    """What a peer may take: minutes of training, and the seed of its draws."""

    minutes: float
    seed: int


def values_of(rows: RowSet, *names: str) -> list[tuple[Any, ...]]:
    """Return columns of rows as they stood in the files."""
    return [tuple(row["values"][name] for name in names) for row in rows.rows()]


def _test(data: PreparedRows) -> RowSet:
    assert data.test is not None, "the rows of a benchmark have a test split"
    return data.test


def tfidf(data: PreparedRows, budget: Budget) -> Answer:
    """TF-IDF of words and pairs of words (of Chinese: runs of up to three characters), then logistic regression."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    del budget
    train, validation, test = (
        values_of(rows, "text", "label") for rows in (data.train, data.validation, _test(data))
    )
    chinese = sum("\u4e00" <= letter <= "\u9fff" for text, _ in train[:200] for letter in text) > 2_000
    shape = {"analyzer": "char", "ngram_range": (1, 3)} if chinese else {"ngram_range": (1, 2)}
    pattern = {} if chinese else {"token_pattern": r"\S+"}
    started = time.perf_counter()

    def fitted(rows: Sequence[tuple[str, str]], penalty: float) -> tuple[Any, Any]:
        vectors = TfidfVectorizer(sublinear_tf=True, **shape, **pattern)
        x = vectors.fit_transform(text for text, _ in rows)
        model = LogisticRegression(C=penalty, max_iter=1000).fit(x, [label for _, label in rows])
        return vectors, model

    def accuracy(model: tuple[Any, Any], rows: Sequence[tuple[str, str]]) -> float:
        vectors, classifier = model
        return float(classifier.score(vectors.transform(t for t, _ in rows), [label for _, label in rows]))

    penalty = max(PENALTIES, key=lambda c: accuracy(fitted(train, c), validation))
    model = fitted([*train, *validation], penalty)
    seconds = time.perf_counter() - started
    note = f"C = {penalty:g} of {PENALTIES}"
    seen = len(PENALTIES) * len(train) + len(train) + len(validation)  # once for each penalty, then all
    return Answer({"accuracy": accuracy(model, test)}, seconds, seen, note)


def boosting(data: PreparedRows, budget: Budget) -> Answer:
    """Gradient boosting of scikit-learn as it comes, categories as such."""
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OrdinalEncoder

    codes = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-1)

    def model(numbers: list[int], categories: list[int]) -> Any:
        columns = ColumnTransformer([("n", "passthrough", numbers), ("c", codes, categories)])
        places = list(range(len(numbers), len(numbers) + len(categories)))
        trees = HistGradientBoostingClassifier(categorical_features=places or None, random_state=budget.seed)
        return make_pipeline(columns, trees)

    return _table(data, model)


def logistic(data: PreparedRows, budget: Budget) -> Answer:
    """Logistic regression of scikit-learn as it comes, on scaled numbers and one-hot categories."""
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    del budget

    def model(numbers: list[int], categories: list[int]) -> Any:
        scaled = make_pipeline(SimpleImputer(), StandardScaler())
        columns = [("n", scaled, numbers), ("c", OneHotEncoder(handle_unknown="ignore"), categories)]
        return make_pipeline(ColumnTransformer(columns), LogisticRegression(max_iter=2000))

    return _table(data, model)


def _table(data: PreparedRows, build: Callable[[list[int], list[int]], Any]) -> Answer:
    from sklearn.metrics import accuracy_score, roc_auc_score

    roles = data.fitted.state["roles"]
    sides = [
        values_of(rows, *roles["used"], roles["target"])
        for rows in (data.train, data.validation, _test(data))
    ]
    x = [np.array([[_cell(v) for v in row[:-1]] for row in side], dtype=object) for side in sides]
    y = [np.array([str(row[-1]) for row in side]) for side in sides]
    known = np.concatenate(x[:2])
    numbers = [at for at, column in enumerate(known.T) if all(isinstance(v, float) for v in column)]
    categories = [at for at in range(known.shape[1]) if at not in numbers]
    for side in x:
        for at in categories:
            side[:, at] = [str(value) for value in side[:, at]]
    known = np.concatenate(x[:2])
    started = time.perf_counter()
    model = build(numbers, categories).fit(known, np.concatenate(y[:2]))
    seconds = time.perf_counter() - started
    chances = model.predict_proba(x[2])
    classes = model.classes_
    figures = {
        "roc_auc": float(roc_auc_score(y[2] == classes[1], chances[:, 1])),
        "accuracy": float(accuracy_score(y[2], classes[chances.argmax(1)])),
    }
    return Answer(figures, seconds, len(known), f"{len(numbers)} numbers, {len(categories)} categories")


def _cell(value: Any) -> Any:
    """Return a cell as a number, NaN where it is empty, or the text that it is."""
    if value is None or value == "":
        return float("nan")
    try:
        return float(value)
    except ValueError:
        return str(value)


def convnet(data: PreparedRows, budget: Budget) -> Answer:
    """The network of Keras' example "Simple MNIST convnet", on Keras with torch, for as long as luban had."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras
    from keras import layers

    keras.utils.set_random_seed(budget.seed)
    x, y = _pictures(data.train)
    network = keras.Sequential(
        [
            keras.Input(x.shape[1:]),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(int(y.max()) + 1, activation="softmax"),
        ]
    )
    # Fifteen epochs are what the example asks for.
    return _fitted(network, data, budget.minutes, epochs=15)


def twin(data: PreparedRows, budget: Budget) -> Answer:
    """The network of luban's `small` on Keras with torch, as Keras trains it, for at most a minute: rows per second."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras
    from keras import layers

    keras.utils.set_random_seed(budget.seed)
    x, y = _pictures(data.train)
    stack = [keras.Input(x.shape[1:])]
    for number, width in enumerate((32, 64, 64, 64)):
        stack.append(layers.Conv2D(width, 3, padding="same", use_bias=False))
        if number < 2:
            stack.append(layers.MaxPooling2D(2))
        stack += [layers.BatchNormalization(), layers.ReLU()]
    stack += [layers.GlobalMaxPooling2D(), layers.Dense(int(y.max()) + 1, activation="softmax")]
    return _fitted(keras.Sequential(stack), data, min(1.0, budget.minutes), epochs=1000)


def _fitted(network: Any, data: PreparedRows, minutes: float, epochs: int) -> Answer:
    """Train a Keras network with Adam on batches of 128 until the epochs or the minutes are over, and measure it."""
    import keras

    (x, y), seen = _pictures(data.train), [0]
    network.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    started = time.perf_counter()

    class Clock(keras.callbacks.Callback):
        """Stops where the minutes are over, within an epoch too."""

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            """Look at the clock."""
            del batch, logs
            seen[0] += 128
            if time.perf_counter() - started > minutes * 60:
                self.model.stop_training = True

    network.fit(x, y, batch_size=128, epochs=epochs, verbose=0, callbacks=[Clock()])
    seconds = time.perf_counter() - started
    figure = float(network.evaluate(*_pictures(_test(data)), batch_size=512, verbose=0)[1])
    note = f"{seen[0] / len(x):.2f} of {epochs} epochs, {network.count_params():,} parameters"
    return Answer({"accuracy": figure}, seconds, seen[0], note)


def _pictures(rows: RowSet) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    pictures = np.asarray(rows.column("image"), np.float32) / 255.0  # (rows, height, width, channels)
    return pictures, np.asarray(rows.column("label"))


def translator(data: PreparedRows, budget: Budget) -> Answer:
    """A Transformer of `torch.nn` layers in float32, see `task_translator`."""
    return _translated(data, budget, bfloat16=False)


def translator_bf16(data: PreparedRows, budget: Budget) -> Answer:
    """The same with autocast to bfloat16."""
    return _translated(data, budget, bfloat16=True)


def _translated(data: PreparedRows, budget: Budget, *, bfloat16: bool) -> Answer:
    from task_translator import train_and_translate

    pairs, test = (values_of(rows, "source", "target") for rows in (data.train, _test(data)))
    seconds = budget.minutes * 60
    return Answer(*train_and_translate(pairs, test, seconds, budget.seed, bfloat16=bfloat16))


PEERS: dict[str, Callable[[PreparedRows, Budget], Answer]] = {
    "tfidf": tfidf,
    "boosting": boosting,
    "logistic": logistic,
    "convnet": convnet,
    "twin": twin,
    "translator": translator,
    "translator-bf16": translator_bf16,
}


def main() -> None:
    """Train a peer on a run's rows and print what it reached."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("peer", choices=sorted(PEERS))
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folds = sorted((options.run / "folds").glob("fold-*"), key=lambda path: int(path.name[5:]))
    folders = [path / "data" for path in folds or [options.run]]
    budget = Budget(options.minutes, options.seed)
    answers = [PEERS[options.peer](PreparedRows(folder), budget) for folder in folders]
    names = answers[0].figures
    found = {
        "figures": {name: statistics.fmean(a.figures[name] for a in answers) for name in names},
        "seconds": sum(a.seconds for a in answers),
        "rows": sum(a.rows for a in answers),
        "note": answers[0].note,
    }
    if len(answers) > 1:
        found["spread"] = {name: statistics.stdev(a.figures[name] for a in answers) for name in names}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
