"""The beginning of a study: its network is built once, and what the rounds need is written down.

``rarefed-server run`` does this, before it asks for the rounds: whoever types it learns at once
that weights are missing or do not fit, and the ServerApp needs neither torch nor a second model.
"""

from pathlib import Path

from common.study import Study
from common.weights import layout_of, take
from server.central_privacy import check_layout
from server.checkpoint import save_initial, save_layout
from server.initial_weights import initial_model
from server.rounds import begin_study


def begin(study: Study, folder: Path) -> None:
    """Write the layout and the initial arrays into the study's folder.

    Raises:
        WeightsError: The weights cannot be had, or do not fit.
        MissingFolderError: The weights file does not exist.
        UnknownBackboneError: timm knows no such backbone.
        OutputError: The folder cannot be written.
        StudyError: The network cannot have the study's central privacy.
    """
    model = initial_model(study).model
    layout = layout_of(model, study)
    check_layout(study, layout)
    save_layout(folder, layout)
    arrays = take(model, model.state_dict())
    save_initial(folder, arrays, layout)  # first: with the model the study has begun
    begin_study(study, arrays, folder)
