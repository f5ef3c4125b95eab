"""A RIS, a modality and an EHR that speak the real protocols."""
