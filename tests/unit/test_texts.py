"""Names as they are compared, and as they are stored for it."""

import hashlib

from broker.dicom import variants
from broker.mwl import texts

# Latin with accents, kana, signs and kanji of the Basic Multilingual Plane, and their forms of other widths.
RANGES = ((0x20, 0x250), (0x1E00, 0x1F00), (0x3000, 0xA000), (0xF900, 0xFB00), (0xFF00, 0xFFF0))
MARKS = (*range(0x300, 0x370), 0x3099, 0x309A)
STORED = "ea4fc0f9483fee0ad87dca8467b697c33d0ca7a190a0894106ed095f83575b2b"


def test_names_are_compared_as_those_were_that_are_stored():
    some = [chr(at) for first, end in RANGES for at in range(first, end)]
    some += [base + chr(mark) for base in "aあが" for mark in MARKS]
    some += sorted({*"".join(variants.KANJI.split()), *map(chr, variants.SUBSTITUTE)})
    compared = "\n".join(map(texts.compared, some))
    assert hashlib.sha256(compared.encode()).hexdigest() == STORED, (
        "the table of variants, the folding or the unicodedata of this Python has changed: a name that is stored "
        "(scheduled_step.name_key) is not found any more by its new form. Write the migration that CONTRIBUTING.md "
        "describes (how names are compared), then put the new digest here"
    )
