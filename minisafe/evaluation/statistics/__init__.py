"""Intervals and tests for shares of answers. Pure: numbers in, numbers out."""

from minisafe.evaluation.statistics.clusters import cluster_interval, cluster_sums
from minisafe.evaluation.statistics.coverage import exceedance, share_exceeded
from minisafe.evaluation.statistics.paired import holm, mcnemar, sign_flip
from minisafe.evaluation.statistics.shares import Z95, cohen_kappa, wilson

__all__ = [
    "Z95",
    "cluster_interval",
    "cluster_sums",
    "cohen_kappa",
    "exceedance",
    "holm",
    "mcnemar",
    "share_exceeded",
    "sign_flip",
    "wilson",
]
