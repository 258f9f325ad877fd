"""k-means on vectors: in memory, memory-mapped or in shards larger than memory.

`kmeans` returns centres, sizes and a report; the result does not depend on blocks, shards or
the number of processes, and a killed run continues bit for bit.
"""

from vqkit.clustering.kmeans import kmeans
from vqkit.clustering.report import Clustering, Iteration, Report
from vqkit.clustering.settings import KMeansSettings
from vqkit.clustering.sources import VectorSource, open_vectors

__all__ = [
    "Clustering",
    "Iteration",
    "KMeansSettings",
    "Report",
    "VectorSource",
    "kmeans",
    "open_vectors",
]
