"""evaluation.json of a model that broke is JSON all the same."""

import json
import math

from luban.tasks.base import Evaluation


def test_what_is_no_number_is_null_everywhere() -> None:
    passage = {"text": "a", "bits_per_byte": math.nan}
    figures = {"loss": math.inf, "bits_per_byte": 1.0}
    found = Evaluation(
        "loss", "min", figures, {"loss": (math.nan, 2.0)}, worst=[passage], best=[passage]
    ).as_json()
    told = json.loads(json.dumps(found, allow_nan=False))
    assert told["primary"]["value"] is None
    assert told["metrics"]["loss"] == {"value": None, "low": None, "high": 2.0}
    assert told["metrics"]["bits_per_byte"] == {"value": 1.0, "low": None, "high": None}, "none was asked for"
    assert told["worst"] == told["best"] == [{"text": "a", "bits_per_byte": None}]
