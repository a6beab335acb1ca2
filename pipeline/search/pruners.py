"""What gives trials up, from the validation robust accuracies that they report epoch by epoch."""

import optuna
from optuna.trial import FrozenTrial, TrialState

from pipeline.params.search import Pruning


def pruner(settings: Pruning | None) -> optuna.pruners.BasePruner:
    """The pruner that the parameters name; none gives nothing up."""
    if settings is None:
        return optuna.pruners.NopPruner()
    if settings.name == "median":
        return optuna.pruners.MedianPruner(settings.startup, settings.warmup)
    return HalvingPruner(settings.warmup, settings.reduction)


class HalvingPruner(optuna.pruners.BasePruner):
    """Asynchronous successive halving (Li et al. 2020) of a maximised objective.

    After `first`, `first` * `reduction`, `first` * `reduction`^2, ... epochs a trial goes on only if it is among the
    best of those that came as far, one in `reduction` of them, but at least one. Optuna's own pruner also counts the
    trials of processes that died, so that a study killed and continued would end otherwise; this one does not.
    """

    def __init__(self, first: int, reduction: int) -> None:
        self.first, self.reduction = first, reduction

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether to give `trial` up after the epoch that it reported last."""
        epoch = trial.last_step
        if epoch is None or not self._decides_at(epoch):
            return False
        others = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING))
        came = [
            t.intermediate_values[epoch] for t in others if t.number != trial.number and epoch in t.intermediate_values
        ]
        kept = max(1, (len(came) + 1) // self.reduction)
        return sum(value > trial.intermediate_values[epoch] for value in came) >= kept

    def _decides_at(self, epoch: int) -> bool:
        rung = self.first
        while rung < epoch:
            rung *= self.reduction
        return rung == epoch
