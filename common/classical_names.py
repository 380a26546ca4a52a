"""Names of the classical ways, which studies and command lines know without anything heavy."""

from enum import StrEnum


class Way(StrEnum):
    """A classifier of scikit-learn on features that are computed once.

    Those without a prefix look at the features of the study's first backbone, the others at edges
    and textures (``client/handcrafted.py``), the "traditional" baseline of the papers.
    """

    LOGISTIC = "logistic"
    SVM = "svm"
    FOREST = "forest"
    ELM = "elm"
    HANDCRAFTED_SVM = "handcrafted-svm"
    HANDCRAFTED_FOREST = "handcrafted-forest"

    @property
    def looks_at_backbone(self) -> bool:
        """Whether it needs the features of a backbone."""
        return not self.startswith("handcrafted-")
