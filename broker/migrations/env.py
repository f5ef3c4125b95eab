"""Alembic's entry: the connection is handed over by schema.py, nothing is read from an ini file."""

from alembic import context
from sqlmodel import SQLModel

import broker.model  # noqa: F401  fills the metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=SQLModel.metadata,
    render_as_batch=True,  # SQLite cannot alter a table in place
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
