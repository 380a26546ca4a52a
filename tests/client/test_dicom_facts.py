"""Laws of what is kept of a DICOM header beside the pixels."""

import pytest
from pydicom import Dataset

from client.dicom_facts import facts_of
from client.pictures import Facts


def facts(**elements: object) -> Facts:
    """Return the facts of a header of 4 x 6 pixels with these elements."""
    header = Dataset()
    header.Rows, header.Columns = 4, 6
    for name, value in elements.items():
        setattr(header, name, value)
    return facts_of(header, header, kind="DICOM", slices=1)


def test_an_empty_header_says_nothing() -> None:
    """Without elements, all but kind and size is empty."""
    assert facts() == Facts("DICOM", 4, 6)


@pytest.mark.parametrize(
    ("elements", "band"),
    [
        ({"PatientAge": "041Y"}, "40-49"),
        ({"PatientAge": "000Y"}, "0-9"),
        ({"PatientAge": "119M"}, "0-9"),
        ({"PatientAge": "120M"}, "10-19"),
        ({"PatientAge": "600W"}, "10-19"),
        ({"PatientAge": "900D"}, "0-9"),
        ({"PatientAge": "41"}, ""),
        ({"PatientBirthDate": "19600229", "StudyDate": "20200228"}, "50-59"),
        ({"PatientBirthDate": "19600229", "StudyDate": "20200229"}, "60-69"),
        ({"PatientBirthDate": "1960.02.29", "StudyDate": "2020.02.29"}, "60-69"),
        ({"PatientBirthDate": "11111111", "StudyDate": "20051130"}, ""),
        ({"PatientBirthDate": "20200101", "StudyDate": "20190101"}, ""),
        ({"PatientBirthDate": "", "StudyDate": "20190101"}, ""),
        ({"PatientBirthDate": "19601340", "StudyDate": "20190101"}, ""),
        ({"PatientAge": "041Y", "PatientBirthDate": "20000101", "StudyDate": "20200101"}, "40-49"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning:pydicom.*")
def test_an_age_is_a_band_of_ten_years(elements: dict[str, str], band: str) -> None:
    """The age, or else the day of birth and of the study, gives a band; nonsense gives none."""
    assert facts(**elements).age == band


def test_texts_are_short_and_of_few_kinds() -> None:
    """A scanner is at most 64 characters on one line; sex, side and text flag are of a list."""
    long = facts(Manufacturer="A\n" + "B" * 60, ManufacturerModelName="C" * 60)
    assert long.scanner == "A " + "B" * 60 + " C"
    assert facts(Manufacturer="GE", ManufacturerModelName="RHAPSODE").scanner == "GE RHAPSODE"
    assert [facts(PatientSex=sex).sex for sex in ("M", "F", "O", "male", "")] == [
        "M",
        "F",
        "O",
        "",
        "",
    ]
    assert [facts(BurnedInAnnotation=flag).burned_in for flag in ("YES", "NO", "MAYBE")] == [
        "YES",
        "NO",
        "",
    ]


def test_the_side_of_the_image_goes_before_that_of_the_series() -> None:
    """Image Laterality wins over Frame Laterality and Laterality; both and unpaired are none."""
    assert facts(ImageLaterality="R", Laterality="L").laterality == "R"
    assert facts(FrameLaterality="L", Laterality="R").laterality == "L"
    assert facts(ImageLaterality="B", Laterality="L").laterality == "L"
    assert facts(ImageLaterality="U").laterality == ""


def test_what_is_odd_is_noted() -> None:
    """Several windows are a note, and so is another unit than Hounsfield's on CT."""
    assert facts(WindowCenter=["40", "50"]).notes == ("several_windows",)
    assert facts(WindowCenter="40").notes == ()
    unit = Dataset()
    unit.CodeValue = "ml/100ml/s"
    assert facts(Modality="CT", MeasurementUnitsCodeSequence=[unit]).notes == ("other_unit",)
    assert facts(Modality="MR", MeasurementUnitsCodeSequence=[unit]).notes == ()
    unit.CodeValue = "[hnsf'U]"
    assert facts(Modality="CT", MeasurementUnitsCodeSequence=[unit]).notes == ()
