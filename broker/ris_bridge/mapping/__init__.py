"""Mapping profiles: where each kind of sender says what, as data (ADR 0007)."""
