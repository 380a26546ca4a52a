"""What holds for each frame of a file: its header, and what functional groups say.

Enhanced objects keep rescale, window, place and side of their frames in sequences, one item for
all frames or one for each (PS3.3 C.7.6.16). A view is a small data set in which these elements
stand at the top level, as in the header of a file of one frame, so that one code reads both.
"""

from pydicom import Dataset

from client.dicom_header import frame_count

MACROS = (
    "PixelMeasuresSequence",  # PS3.3 C.7.6.16.2.1
    "PlanePositionSequence",  # C.7.6.16.2.3
    "PlaneOrientationSequence",  # C.7.6.16.2.4
    "FrameAnatomySequence",  # C.7.6.16.2.8: the side
    "PixelValueTransformationSequence",  # C.7.6.16.2.9: the rescale
    "FrameVOILUTSequence",  # C.7.6.16.2.10
    "RealWorldValueMappingSequence",  # C.7.6.16.2.11: the unit; the first of several
)
"""Functional groups whose elements a view takes over."""

_GROUPS = (0x0018, 0x0020, 0x0028)  # acquisition, place and pixels, of all frames alike


def views_of(header: Dataset) -> list[Dataset]:
    """Return what holds for each frame, in the order of the file.

    Args:
        header: Of a file with any number of frames, with or without its pixels.

    Returns:
        The header itself for each frame where it has no functional groups.
    """
    count = frame_count(header)
    shared = header.get("SharedFunctionalGroupsSequence") or []
    frames = header.get("PerFrameFunctionalGroupsSequence") or []
    if not shared and not frames:
        return [header] * count
    common = Dataset()
    for group in _GROUPS:
        common.update(header.group_dataset(group))
    for item in shared[:1]:
        _take_over(common, item)
    # A frame without an item, which no frame may lack, has what is shared.
    items = [*frames[:count], *[Dataset()] * (count - len(frames))]
    return [_view(common, item, header) for item in items]


def _view(common: Dataset, item: Dataset, header: Dataset) -> Dataset:
    view = Dataset()
    view.update(common)
    _take_over(view, item)
    view.file_meta = header.file_meta  # says in which order the bytes of tables are
    return view


def _take_over(view: Dataset, groups: Dataset) -> None:
    for macro in MACROS:
        for item in (groups.get(macro) or [])[:1]:
            view.update(item)
