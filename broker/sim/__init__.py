"""A RIS, a modality and an EHR that speak the real protocols: used by the demo, by tests, by a site that tries out."""
