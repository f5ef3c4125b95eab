"""Alembic: one file per schema change under versions/; `broker/schema.py` runs them."""
