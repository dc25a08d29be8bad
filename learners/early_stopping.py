"""Early stopping: judge every epoch by clean validation images and keep the weights of the best.

A network learns the images before it learns the shortcut, so that accuracy peaks early. Standard
training otherwise; needs clean labelled images, and looks at no test image. Source:
Sandoval-Segura et al., arXiv 2204.08615.

Deviations: the paper shows the peak over epochs on the test set, which nobody can know who trains
on a poisoned set: here another set of clean images picks the epoch.
"""

import dataclasses
from dataclasses import dataclass

from core.imageset import ImageSet
from core.ranges import Count
from core.run import Run
from core.training import Result, accuracy, train_classifier
from learners import standard

VERSION = 1
SMOKE = standard.SMOKE
NEEDS_CLEAN = True              # they judge; no step is taken on them


@dataclass(frozen=True)
class Config(standard.Config):
    # epochs without a better one after which training ends; null: all are trained, as in the paper
    patience: Count | None = None


def fit(train: ImageSet, test: ImageSet, config: Config, run: Run) -> Result:
    """Train a fresh classifier on `train`; `last` is the score on the clean `test` of the weights
    of the epoch (the first, of equal ones) that is right on most of `run.clean`."""
    judged: list[float] = []                # by epoch

    def judge(epoch: int, model) -> bool:
        judged.append(accuracy(model, run.clean, run))
        best = best_of(judged)
        if best == epoch:
            run.keep("best", {"weights": model.state_dict(), "epoch": epoch})
        return config.patience is not None and epoch - best >= config.patience

    model, result = train_classifier(standard.build(train, config, run), train, test, config, run,
                                     after_epoch=judge, noted=judged)
    best = run.load_state("best", required=True)
    model.load_state_dict(best["weights"])
    # On a GPU, epochs that a killed run repeats may score otherwise: these weights count.
    kept, last = best["epoch"] + 1, accuracy(model, test, run)
    run.log_once("early_stopping", kept_epoch=kept, validation_accuracies=judged)
    if last > result.best:                  # of an epoch that was not tested
        result = dataclasses.replace(result, best=last, best_epoch=kept)
    return dataclasses.replace(result, last=last, kept_epoch=kept)


def best_of(accuracies: list[float]) -> int:
    """The number, from 0, of the first best epoch."""
    return accuracies.index(max(accuracies))
