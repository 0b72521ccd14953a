"""The figures of this project's own study, and its numbers (docs/results)."""

from dataclasses import replace

import pandas as pd

from hiddenweights.analysis.specs import EDGE_POPUP, Spec, label, network, network_and_data, over_k, over_kept


def _kept(cells: pd.DataFrame) -> "pd.Series[str]":
    """A curve per fraction kept, and one for the trained networks."""
    kept = (100 * cells["model.k"]).round().map("{:g}% kept".format)
    return kept.where(cells["model.method"] != "dense", label(cells))


def _method(cells: pd.DataFrame) -> "pd.Series[str]":
    """A curve per method and distribution."""
    names = label(cells)
    return names.where(cells["model.method"] != "edge_popup", EDGE_POPUP + names)


def _network_and_width(cells: pd.DataFrame) -> "pd.Series[str]":
    """A panel per network and width."""
    return network(cells) + cells["model.width"].map(", width {:g}".format)


def _over_rates(name: str, title: str) -> Spec:
    return Spec(
        name=name,
        title=title,
        x="optim.lr",
        x_label="learning rate",
        x_words="learning rate {:g}",
        log=True,
        level_baselines=False,
        curve=_method,
        panel=network_and_data,
        y="validation_accuracy",
        y_label="validation accuracy (%)",
    )


FIGURES: tuple[Spec, ...] = (
    over_k("study_small", "CIFAR-10 at half width, ten epochs: one seed of Conv2"),
    over_k("study_depth", "CIFAR-10 at half width, ten epochs: subnetworks of random networks"),
    over_k("study_recipe_rate", "CIFAR-10, ten epochs, at the recipe's learning rate"),
    replace(
        over_k("study_shallow", "Where it stops working: networks without depth, ten epochs"),
        panel=network_and_data,
    ),
    replace(
        over_kept("study_methods", "Ways to choose the mask: Conv4 at half width, CIFAR-10, ten epochs"),
        curve=_method,
    ),
    Spec(
        name="study_width",
        title="Conv4 of three widths, CIFAR-10, ten epochs",
        x="model.width",
        x_label="width multiplier",
        x_words="width {:g}",
        level_baselines=False,
        curve=_kept,
    ),
    over_k("study_resnet18", "ResNet-18 at a quarter of the width, CIFAR-10, ten epochs"),
    _over_rates("study_rates", "Learning rates for Conv2 and Conv4, judged on held-out images, ten epochs"),
    _over_rates(
        "study_rates_more", "Learning rates for the later stages, judged on held-out images, ten epochs"
    ),
    *(
        replace(_over_rates(name, title), panel=_network_and_width)
        for name, title in (
            ("study_rates_wide", "Learning rates for Conv4 by width, judged on held-out images, ten epochs"),
            ("study_rates_deep", "Learning rates for deeper networks, judged on held-out images, ten epochs"),
        )
    ),
)
