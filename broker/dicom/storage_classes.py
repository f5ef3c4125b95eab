"""What a storage SCP takes: the SOP classes that pynetdicom knows, in every transfer syntax but the deflated ones."""

from pynetdicom.presentation import AllStoragePresentationContexts

STORAGE_CLASSES = tuple(str(context.abstract_syntax) for context in AllStoragePresentationContexts)

_JPEG = "1.2.840.10008.1.2.4."
# In our order of preference (conformance.md 3.1). Native first: any reader can use it, and a sender that must keep its
# compression proposes that in a context of its own. JPIP is left out: its pixels stay elsewhere, so we could not keep
# them; so is deflate (security V6).
TRANSFER_SYNTAXES = (
    "1.2.840.10008.1.2.1",  # Explicit VR Little Endian
    "1.2.840.10008.1.2",  # Implicit VR Little Endian
    *(
        _JPEG + process for process in ("70", "57", "80", "90", "201", "202")
    ),  # lossless JPEG, JPEG-LS, JPEG 2000, HTJ2K
    "1.2.840.10008.1.2.5",  # RLE
    *(_JPEG + process for process in ("50", "51", "81", "91", "203", "92", "93")),  # lossy, or either
    *(_JPEG + f"{mpeg}{form}" for mpeg in range(100, 107) for form in ("", ".1")),  # MPEG-2, MPEG-4; fragmentable
    *(_JPEG + hevc for hevc in ("107", "108")),  # HEVC
    "1.2.840.10008.1.2.1.98",  # Encapsulated Uncompressed Explicit VR Little Endian
    "1.2.840.10008.1.2.2",  # Explicit VR Big Endian, retired
)
