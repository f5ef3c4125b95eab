"""What a device still asks: the question for its list, which stands, and searches for one patient or number. Pure."""

import datetime as dt

from broker.dicom.tree import Tree
from broker.mwl import matching
from broker.mwl.keys import step_keys

RECENT = dt.timedelta(days=1)  # before its newest query: as long a question counts as one that it still asks
STANDING_MAX, SEARCHES_MAX = 5, 20  # different ones of a device that are asked again
PATIENT_NAME, BIRTH_DATE, ADMISSION_ID = 0x00100010, 0x00100030, 0x00380010
# Keys whose values name one patient or one exam: they change from query to query, and say nothing of the device.
IDENTIFYING = frozenset(
    {PATIENT_NAME, BIRTH_DATE, ADMISSION_ID, 0x00100020, 0x00080050, 0x00401001, 0x00400009, 0x0020000D}
)


def searched_by(query: Tree) -> list[int]:
    """The identifying keys with a value that an item can fail; none of a question that stands."""
    keys = matching.selective(query)
    return [tag for part in (step_keys(keys), keys) for tag in part if tag in IDENTIFYING]
