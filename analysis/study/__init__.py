"""The figures of this project's own study, and its numbers (docs/results)."""

from hiddenweights.analysis.specs import Spec, over_k

FIGURES: tuple[Spec, ...] = (
    over_k("study_small", "CIFAR-10 at half width, ten epochs: one seed of Conv2"),
    over_k("study_depth", "CIFAR-10 at half width, ten epochs: subnetworks of random networks"),
)
