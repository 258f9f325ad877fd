"""What the LooC paper prints for small images: rows of Tables 1, 3, 4 and 5, and their numbers.

Numbers as printed (Table 8 adds l1 to Table 1; where it prints more digits, those of Tables 3 and 5
stand here). VQ-VAE, SQ-VAE and CVQ-VAE are quoted there from the CVQ paper; only PQ is
said to be run again. HVQ-VAE, a stack of autoencoders, is not offered here.
"""

from __future__ import annotations

from typing import Final, Literal

SmallSet = Literal["mnist", "cifar10", "fashion_mnist"]

Row = tuple[str, int, int]
"""Preset, codes in one codebook, length of a code."""

DATA_SETS: Final[tuple[SmallSet, ...]] = ("mnist", "cifar10", "fashion_mnist")
METRICS: Final = ("l1", "lpips", "rfid", "ssim", "psnr")
"""Order of the numbers below. rFID is not comparable between the quoted rows and LooC's (CIFAR-10:
LooC with better l1, LPIPS, SSIM and PSNR than CVQ has a worse rFID)."""

_BASELINES: Final[tuple[Row, ...]] = (("vq_vae", 1024, 128), ("cvq", 1024, 128))

TABLES: Final[dict[int, tuple[Row, ...]]] = {
    1: (
        ("vq_vae", 1024, 128),
        ("sq_vae", 1024, 128),
        ("cvq", 1024, 128),
        ("pq", 256, 4),
        ("looc", 32, 4),
        ("looc", 256, 4),
    ),
    3: (*_BASELINES, *(("looc", 256, dim) for dim in (4, 8, 16, 32, 64))),
    4: (*_BASELINES, *(("looc", 32768 // dim, dim) for dim in (128, 64, 32, 16, 8, 4))),
    5: (*_BASELINES, *(("looc", codes, 4) for codes in (8, 16, 32, 64, 128, 256, 512, 1024))),
}
"""Rows in printed order. Table 1 has MNIST and CIFAR-10, the others Fashion-MNIST too."""

Cell = tuple[float | None, float, float, float, float]

PUBLISHED: Final[dict[Row, dict[str, Cell]]] = {
    ("vq_vae", 1024, 128): {
        "mnist": (0.0207, 0.0282, 3.43, 0.9777, 26.48),
        "cifar10": (0.0527, 0.2504, 39.67, 0.8595, 23.32),
        "fashion_mnist": (0.0377, 0.0801, 12.73, 0.914, 23.93),
    },
    ("sq_vae", 1024, 128): {
        "mnist": (0.0197, 0.0256, 3.05, 0.9819, 27.49),
        "cifar10": (0.0482, 0.2333, 37.92, 0.8779, 24.07),
    },
    ("cvq", 1024, 128): {
        "mnist": (0.018, 0.0222, 1.8, 0.9833, 27.87),
        "cifar10": (0.0448, 0.1883, 24.73, 0.8978, 24.72),
        "fashion_mnist": (0.0344, 0.0693, 8.85, 0.9233, 24.66),
    },
    ("pq", 256, 4): {
        "mnist": (None, 0.012, 1.76, 0.9933, 32.32),
        "cifar10": (None, 0.0953, 27.15, 0.9527, 28.27),
    },
    ("looc", 8, 4): {
        "mnist": (0.0095, 0.0097, 1.86, 0.995, 33.9),
        "cifar10": (0.022, 0.0559, 28.35, 0.974, 30.96),
        "fashion_mnist": (0.0168, 0.0197, 9.92, 0.9819, 31.26),
    },
    ("looc", 16, 4): {
        "mnist": (0.0079, 0.008, 1.61, 0.9964, 35.53),
        "cifar10": (0.0211, 0.0521, 27.13, 0.9763, 31.32),
        "fashion_mnist": (0.0162, 0.0184, 9.89, 0.9833, 31.53),
    },
    ("looc", 32, 4): {
        "mnist": (0.0082, 0.0083, 1.7, 0.9961, 35.15),
        "cifar10": (0.0189, 0.0435, 24.53, 0.9805, 32.22),
        "fashion_mnist": (0.0145, 0.0158, 8.73, 0.9864, 32.49),
    },
    ("looc", 64, 4): {
        "mnist": (0.0075, 0.0072, 1.54, 0.9967, 36.02),
        "cifar10": (0.0178, 0.0407, 23.7, 0.9825, 32.73),
        "fashion_mnist": (0.0133, 0.014, 8.05, 0.9883, 33.26),
    },
    ("looc", 128, 4): {
        "mnist": (0.0068, 0.0065, 1.43, 0.9972, 36.77),
        "cifar10": (0.0158, 0.0332, 21.15, 0.9859, 33.7),
        "fashion_mnist": (0.0114, 0.0112, 6.9, 0.991, 34.59),
    },
    ("looc", 256, 4): {
        "mnist": (0.0062, 0.0058, 1.31, 0.9976, 37.58),
        "cifar10": (0.0144, 0.0285, 19.22, 0.988, 34.51),
        "fashion_mnist": (0.0103, 0.0098, 6.24, 0.9924, 35.34),
    },
    ("looc", 256, 8): {
        "mnist": (0.0068, 0.0064, 1.4, 0.9972, 36.79),
        "cifar10": (0.0188, 0.043, 24.17, 0.9809, 32.3),
        "fashion_mnist": (0.0115, 0.0114, 6.93, 0.9907, 34.42),
    },
    ("looc", 512, 4): {
        "mnist": (0.0055, 0.0051, 1.18, 0.998, 38.4),
        "cifar10": (0.0137, 0.0258, 18.14, 0.9891, 34.92),
        "fashion_mnist": (0.0092, 0.0083, 5.5, 0.9937, 36.24),
    },
    ("looc", 256, 16): {
        "mnist": (0.0097, 0.01, 1.88, 0.9949, 33.73),
        "cifar10": (0.0246, 0.0681, 31.55, 0.9679, 29.97),
        "fashion_mnist": (0.018, 0.0211, 10.93, 0.9796, 30.62),
    },
    ("looc", 1024, 4): {
        "mnist": (0.0051, 0.0045, 1.1, 0.9982, 38.97),
        "cifar10": (0.0116, 0.0192, 14.1, 0.9918, 36.38),
        "fashion_mnist": (0.0083, 0.0073, 5.07, 0.9946, 37.1),
    },
    ("looc", 256, 32): {
        "mnist": (0.0118, 0.0125, 2.19, 0.9928, 32.05),
        "cifar10": (0.0295, 0.0934, 37.58, 0.9551, 28.43),
        "fashion_mnist": (0.0236, 0.0325, 13.95, 0.966, 28.2),
    },
    ("looc", 256, 64): {
        "mnist": (0.0138, 0.0157, 2.51, 0.9903, 30.58),
        "cifar10": (0.0367, 0.1435, 51.06, 0.9293, 26.46),
        "fashion_mnist": (0.0288, 0.0476, 17.08, 0.9497, 26.42),
    },
    ("looc", 256, 128): {
        "mnist": (0.0166, 0.0213, 3.17, 0.9853, 28.63),
        "cifar10": (0.0464, 0.2144, 64.71, 0.8923, 24.46),
        "fashion_mnist": (0.0344, 0.068, 21.76, 0.9256, 24.71),
    },
    ("looc", 512, 64): {
        "mnist": (0.0122, 0.0133, 2.28, 0.9923, 31.77),
        "cifar10": (0.0343, 0.1249, 45.23, 0.9392, 27.09),
        "fashion_mnist": (0.0266, 0.041, 16.02, 0.9566, 27.16),
    },
    ("looc", 1024, 32): {
        "mnist": (0.0094, 0.0095, 1.84, 0.9952, 34.1),
        "cifar10": (0.0261, 0.0735, 33.51, 0.9643, 29.45),
        "fashion_mnist": (0.0197, 0.0243, 11.59, 0.976, 29.83),
    },
    ("looc", 2048, 16): {
        "mnist": (0.0073, 0.007, 1.51, 0.9968, 36.14),
        "cifar10": (0.0205, 0.049, 26.29, 0.9773, 31.55),
        "fashion_mnist": (0.0138, 0.0144, 8.29, 0.9873, 32.84),
    },
    ("looc", 4096, 8): {
        "mnist": (0.0056, 0.0049, 1.17, 0.998, 38.39),
        "cifar10": (0.0146, 0.0293, 19.4, 0.9878, 34.4),
        "fashion_mnist": (0.0098, 0.0091, 5.91, 0.9929, 35.71),
    },
    ("looc", 8192, 4): {
        "mnist": (0.0047, 0.004, 0.99, 0.9984, 39.71),
        "cifar10": (0.0099, 0.0154, 12.65, 0.9937, 37.49),
        "fashion_mnist": (0.0083, 0.007, 4.86, 0.9947, 37.05),
    },
}
"""Row -> data set -> numbers in the order of `METRICS`; None where the paper prints none."""


def table_data_sets(table: int) -> tuple[SmallSet, ...]:
    """Return the data sets of a table, in printed order."""
    return DATA_SETS[:2] if table == 1 else DATA_SETS


def published(row: Row, data_set: str) -> dict[str, float]:
    """Return the printed numbers of a row, by metric; empty if the paper has none."""
    cell = PUBLISHED.get(row, {}).get(data_set, ())
    return {name: x for name, x in zip(METRICS, cell, strict=False) if x is not None}
