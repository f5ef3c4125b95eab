"""The front door: everything between a socket and a service. Knows DIMSE, knows no order and no image."""
