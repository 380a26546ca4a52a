"""What a hospital agrees to of how a study trains and ends, in words."""

from common.phases import has_phases, width
from common.study import Study

MEMBERS = (
    "at the end: the validation patients' confusion matrix, sums and histograms again for each "
    "member of the ensemble by itself"
)
"""Where the members' own figures decide what they weigh."""
_ALIGNED = (
    "a discriminator of sites is trained here and travels with the network: with it the "
    "coordinator and all sites could tell how this site's images differ from the others', and of "
    "any image which site's it is like"
)
_NOT_ALIGNED = "none: nothing is trained that tells sites apart"
_WEIGHED = (
    "those that a table here names a source of weigh by how like this site's own they are; what "
    "they weigh stays here"
)
_NOT_WEIGHED = "weigh as much as this site's own"
_UNDECIDED = "no figures: all rounds are made"
_AS_IT_LIKES = "what the hospital likes; the study says nothing of it"


def trained(study: Study) -> str:
    """Return which layers train in which rounds."""
    training = study.training
    lasting = _layers(training.train)
    if not has_phases(training):
        return f"{lasting}, in all rounds"
    if (every := training.unfreeze_every) is not None:
        often = "each round" if every == 1 else f"every {every} rounds"
        return (
            f"the heads alone at first; after {often} one more stage of the backbone, the last "
            f"one first; in the end {lasting}"
        )
    first, said = 1, []
    for phase in training.phases:
        last = first + phase.rounds - 1
        rounds = f"round {first}" if first == last else f"rounds {first} to {last}"
        said.append(f"{_layers(phase.train)} in {rounds}")
        first = last + 1
    return "; ".join([*said, f"then {lasting}"])


def stays(study: Study) -> str:
    """Return what of the network each site keeps to itself."""
    kept = []
    if study.federation.personal == "head":
        kept.append("the heads: each site trains and keeps its own")
    if any(one.backbone.normalisation == "local" for one in study.members):
        kept.append("batch normalisation: each site keeps its own")
    return "; ".join(kept) or "nothing of the network"


def aligned(study: Study) -> str:
    """Return what is trained to tell the sites apart."""
    return _ALIGNED if study.training.aligns else _NOT_ALIGNED


def from_elsewhere(study: Study) -> str:
    """Return what training images from elsewhere weigh."""
    return _WEIGHED if study.training.source_weighting == "similarity" else _NOT_WEIGHED


def decided(study: Study) -> str:
    """Return what the sites' validation figures decide, and with which model the study ends."""
    federation, stopping = study.federation, study.federation.early_stopping
    found = []
    if study.training.schedule.kind == "plateau":
        found.append("when learning rates fall")
    if stopping is not None:
        found.append(
            f"whether it ends early, after {stopping.patience} rounds without a better figure"
        )
    if federation.keep == "best":
        found.append("which round's model it ends with")
    if federation.votes == "validation":
        found.append("what each member of the ensemble weighs in the end")
    text = "; ".join(found) or _UNDECIDED
    if federation.average_last > 1:
        text += f". It ends with the mean of the last {federation.average_last} rounds' models"
    return text


def afterwards(study: Study) -> str:
    """Return what this hospital's own commands make of the final network, none of which leaves."""
    ways, rounds = study.evaluation.classical, study.evaluation.tuned_rounds
    found = []
    if ways:
        found.append(f"it is compared with {', '.join(ways)}, fitted to this site's patients")
    if rounds is not None:
        found.append(f"it may be trained {rounds} round{'s' * (rounds > 1)} further")
    return f"{'; '.join(found)}. None of it leaves" if found else _AS_IT_LIKES


def _layers(train: str) -> str:
    match train:
        case "all":
            return "all layers"
        case "head":
            return "the heads alone"
    stages = width(train, 0)
    return f"the last {f'{stages} stages' if stages > 1 else 'stage'} and the heads"
