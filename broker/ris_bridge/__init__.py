"""The RIS and EHR side."""
