"""The network of a study as the coordinator has it on disk, ready to be asked."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load_file

from common.errors import WeightsError
from common.layout import without_discriminator
from common.models import FederatedModel, build_without_discriminator
from common.study import Study
from common.weights import put


def load_model(study: Study, file: Path) -> FederatedModel:
    """Return the network of ``study`` with the arrays of a file, in evaluation mode on the CPU.

    Args:
        study: The study.
        file: Every array of the network, as ``server.checkpoint`` writes it.

    Raises:
        WeightsError: The file cannot be read, or is not of this network.
    """
    model = build_without_discriminator(study)
    remedy = "Give the model of this very study, with the release of rarefed that it ran with."
    try:
        arrays = without_discriminator(load_file(file))
        put(model, arrays)
    except (OSError, SafetensorError, ValueError) as error:
        raise WeightsError(f"{file} cannot be used: {error}", remedy=remedy) from error
    if missing := sorted(model.state_dict().keys() - arrays.keys()):
        raise WeightsError(f"{file} lacks the arrays {', '.join(missing)}.", remedy=remedy)
    return model.eval()
