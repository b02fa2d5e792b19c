"""The verbs, in Python: each puts the parts of luban together to do one whole thing."""

from luban.verbs.evaluate import evaluate
from luban.verbs.load import load
from luban.verbs.predict import predict
from luban.verbs.prepare import prepare
from luban.verbs.quickstart import quickstart
from luban.verbs.train import train

__all__ = ["evaluate", "load", "predict", "prepare", "quickstart", "train"]
