"""ris-broker: the link between a hospital's RIS/EHR, its imaging devices and its image archive."""

__version__ = "0.1.0"
