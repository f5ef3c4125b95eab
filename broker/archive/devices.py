"""Which AE titles are one machine (reconciliation.md 3.3). Pure."""

import ipaddress
from collections.abc import Sequence

from broker.model.site import Node


class Devices:
    """A device is named as the site names it, else by the first AE title of its group: nodes with the same host or a
    station name in common. An AE title that is no node is a device of its own."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = {node.ae_title: node for node in nodes}
        self._device: dict[str, str] = {}
        for node in sorted(nodes, key=lambda node: (not node.device, node.ae_title)):
            same = (other for other in nodes if other.ae_title in self._device and _is_same(node, other))
            first = next(same, None)
            self._device[node.ae_title] = node.device or (self._device[first.ae_title] if first else node.ae_title)

    def of(self, ae_title: str) -> str:
        return self._device.get(ae_title, ae_title)

    def at_station(self, station_name: str) -> str | None:
        """The device with that Station Name (0008,1010)."""
        found = {self.of(node.ae_title) for node in self._nodes.values() if station_name in node.station_names}
        return found.pop() if len(found) == 1 else None

    def titles(self, device: str) -> list[str]:
        return [ae_title for ae_title, own in self._device.items() if own == device] or [device]

    def kind(self, ae_title: str) -> str:
        return self._nodes[ae_title].kind if ae_title in self._nodes else "modality"

    def is_mobile(self, device: str) -> bool:
        return any(self.kind(ae_title) == "mobile" for ae_title in self.titles(device))

    def issuers(self, ae_title: str) -> tuple[str, str]:
        """Of Patient IDs and of accession numbers, where an object of that node names none."""
        node = self._nodes.get(ae_title)
        return (node.patient_id_issuer, node.accession_issuer) if node else ("", "")


def _is_same(a: Node, b: Node) -> bool:
    if set(a.station_names) & set(b.station_names):
        return True
    return a.host == b.host and not a.any_address and _is_one_machine(a.host)


def _is_one_machine(host: str) -> bool:
    """A loopback address says only that they reach us in the same way."""
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host not in ("", "localhost")
