"""Iris: 150 flowers, 4 lengths, 3 species (Fisher 1936, https://doi.org/10.1111/j.1469-1809.1936.tb02137.x).

``iris.csv`` has the corrected values that scikit-learn ships. The copy in the UCI archive differs from Fisher's paper in
rows 35 and 38 (https://archive.ics.uci.edu/dataset/53/iris). There is no official test set, so the test uses a fraction or
a fold of the rows.
"""

import csv
from pathlib import Path
from typing import Annotated, Any

import torch

from datamodules.classification import ClassificationDataModule, DataSpec, Labelled

SPECIES = ("setosa", "versicolor", "virginica")
MEASUREMENTS = ("sepal length", "sepal width", "petal length", "petal width")


class Iris(ClassificationDataModule):
    """150 flowers of 3 species with 4 measurements in centimetres. The data is part of the project.

    Args:
        test_fraction: Fraction of each species that is used for the test if `num_folds` is null, chosen by `split_seed`.
        options: Options of `ClassificationDataModule`.
    """

    modality = "features"

    def __init__(self, test_fraction: Annotated[float, "> 0, < 1"] = 0.2, **options: Any) -> None:
        super().__init__(**options)
        self.test_fraction = test_fraction

    @property
    def spec(self) -> DataSpec:
        return DataSpec(self.modality, (4,), SPECIES, feature_names=MEASUREMENTS)

    def load(self) -> tuple[Labelled, None]:
        with Path(__file__).with_name("iris.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        labels = torch.tensor([SPECIES.index(row.pop("species")) for row in rows])
        inputs = torch.tensor([[float(value) for value in row.values()] for row in rows])
        return (inputs, labels), None
