"""What a peer can be told, and how each protocol says it: one table.

Every error names the place, what was found and what was expected, and never holds patient data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Wire:
    """The forms of one error. dimse_n: DIMSE-N status. dimse_c: C-FIND and C-STORE status. msa/err: HL7 MSA-1 and
    ERR-3 (table 0357). http: status code."""

    dimse_n: int
    dimse_c: int
    msa: str
    err: str
    http: int


class BrokerError(Exception):
    """A refusal with a reason. Anything else that is raised is a bug."""

    wire = Wire(0x0110, 0xC010, "AE", "207", 500)
    title = "internal error"
    also: tuple[tuple[str, str], ...] = ()  # (place, text) of what else is wrong, where all of it was looked for

    def __init__(self, place: str, text: str = "", *, err: str | None = None, tags: tuple[int, ...] = ()) -> None:
        """place: where (`OBR-18`, `(0040,0252)`, `patient.id`). text: what was found and what is expected.
        err: an ERR-3 code more exact than the table's. tags: DICOM tags for Offending Element or the attribute list."""
        self.place = place
        self.text = text or self.title
        self.err = err or self.wire.err
        self.tags = tags
        super().__init__(f"{place}: {self.text}" if place else self.text)


class MissingField(BrokerError):
    wire = Wire(0x0120, 0xA900, "AE", "101", 422)
    title = "required and absent"


class EmptyField(MissingField):
    """Present without a value: PS3.7 C.5.13 keeps it apart from absent."""

    wire = Wire(0x0121, 0xA900, "AE", "101", 422)
    title = "required and empty"


class MissingUid(MissingField):
    """A data set that cannot be filed anywhere. 0xC001: our own, conformance.md 3.1."""

    wire = Wire(0x0120, 0xC001, "AE", "101", 422)
    title = "UID required and absent"


class InvalidValue(BrokerError):
    wire = Wire(0x0106, 0xA900, "AE", "103", 422)
    title = "not an acceptable value"


class OtherInstance(InvalidValue):
    """0xA901: our own, conformance.md 3.1."""

    wire = Wire(0x0117, 0xA901, "AE", "103", 422)
    title = "the data set is another SOP instance than the command says"


class InvalidInstance(InvalidValue):
    """A SOP Instance UID that is no UID (PS3.7 C.5.11)."""

    wire = Wire(0x0117, 0xA900, "AE", "103", 422)
    title = "is no UID"


class UnknownKey(BrokerError):
    wire = Wire(0x0112, 0xC010, "AE", "204", 404)
    title = "not known here"


class DuplicateKey(BrokerError):
    wire = Wire(0x0111, 0xC010, "AE", "205", 409)
    title = "exists already and differs"


class WrongState(BrokerError):
    wire = Wire(0x0110, 0xC000, "AE", "207", 409)
    title = "not possible in this state"


class Stale(WrongState):
    """If-Match, or If-None-Exist that names several."""

    wire = Wire(0x0110, 0xC000, "AE", "207", 412)
    title = "has changed since it was read"


class Parked(BrokerError):
    """Bytes that the program did not survive several times (security V14)."""

    title = (
        "was being read each time when the program died, and is not looked at again by itself:"
        " replay it after an upgrade"
    )


class NotAllowed(BrokerError):
    wire = Wire(0x0124, 0x0124, "AR", "207", 403)
    title = "no permission"


class Unsupported(BrokerError):
    wire = Wire(0x0211, 0x0122, "AR", "200", 415)
    title = "not supported"


class NoRoom(BrokerError):
    wire = Wire(0x0213, 0xA700, "AE", "207", 503)
    title = "no room: send again later"


class DatabaseAway(NoRoom):
    """0xA702: our own, conformance.md 3.1."""

    wire = Wire(0x0213, 0xA702, "AE", "207", 503)
    title = "database away: send again later"


class TooMany(BrokerError):
    """A list over its limit: told, never cut silently."""

    wire = Wire(0x0213, 0xA700, "AE", "207", 422)
    title = "too many matches, refine query"


class Unreadable(BrokerError):
    """Bytes that are no data set, message or document of the kind they claim to be."""

    wire = Wire(0x0110, 0xC000, "AE", "100", 400)
    title = "cannot be read"


class ConfigError(BrokerError):
    """Told to the person at the command line; never crosses a protocol."""

    title = "configuration"
