"""FHIR R4: orders in, and what their intake needs to read again."""
