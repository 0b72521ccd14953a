"""The figures of Ramanujan et al. 2020 (arXiv 1911.13299), and its published numbers."""

import pandas as pd

from hiddenweights.analysis.specs import Spec, label, network, one_panel, over_k, over_kept


def budget(cells: pd.DataFrame) -> "pd.Series[str]":
    """The number of weights that a Conv4 keeps, as a share of all weights at width 1."""
    share = (100 * cells["model.k"] * cells["model.width"] ** 2).round().astype("Int64").astype("str")
    return (share + "% of width 1's weights").where(cells["model.method"] != "dense", label(cells))


FIGURES: tuple[Spec, ...] = (
    over_k("depth", "Subnetworks of randomly weighted networks of growing depth"),
    Spec(
        name="width",
        title="Subnetworks of ever wider random networks",
        x="model.width",
        x_label="width multiplier",
        x_words="width {:g}",
        level_baselines=False,
    ),
    Spec(
        name="fixed_weights",
        title="The same number of weights, chosen from ever wider random networks",
        x="model.width",
        x_label="width multiplier",
        x_words="width {:g}",
        curve=budget,
    ),
    over_kept("sampled", "Top-k supermasks (edge-popup) against sampled supermasks"),
    over_k("distributions", "The distribution of the random weights matters"),
    Spec(
        name="imagenet",
        title="Subnetworks of random networks against trained networks on ImageNet",
        x="weights_kept",
        x_label="weights (millions)",
        x_words="{:.1f} million weights",
        scale=1e-6,
        level_baselines=False,
        panel=one_panel,
        tag=network,
        y_label="top-1 accuracy (%)",
    ),
    over_k("imagenet_k", "ResNet-50 on ImageNet over the fraction kept", y_label="top-1 accuracy (%)"),
    over_k("scaled", "Scaled against unscaled weights", y_label="top-1 accuracy (%)"),
    over_k("resnet18", "Subnetworks of a random ResNet-18"),
    over_k("control", "The choice of the mask matters: edge-popup against random masks"),
    over_k("lottery", "Subnetworks trained: the found ones against random ones"),
)
