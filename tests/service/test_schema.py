"""The schema: migrations and models agree, an empty database fills itself, a foreign one is refused."""

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlmodel import Session, SQLModel, select

from broker import audit, clock, db, schema
from broker.errors import ConfigError
from broker.model.work import AuditEvent

pytestmark = pytest.mark.usefixtures("database")


def test_the_migrations_make_exactly_the_tables_of_the_models():
    with db.engine().connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, SQLModel.metadata) == []


def test_a_database_at_the_newest_schema_is_accepted():
    schema.prepare()


def test_a_database_of_another_revision_is_refused_and_the_error_says_what_to_run():
    with db.engine().begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0000'"))
    with pytest.raises(ConfigError, match="broker db upgrade"):
        schema.prepare()


def test_an_audit_row_can_be_added_but_never_changed_or_deleted():
    db.run(audit.record, "process.start", "process", actor="broker", now=clock.now())
    for statement in ("UPDATE audit_event SET actor = 'nobody'", "DELETE FROM audit_event"):
        with pytest.raises(DBAPIError, match="append only"):
            db.run(lambda session, statement=statement: session.connection().execute(text(statement)))
    assert [row.actor for row in db.read(lambda session: session.exec(select(AuditEvent)).all())] == ["broker"]


def test_foreign_keys_are_enforced():
    def orphan(session: Session) -> None:
        session.connection().execute(text("INSERT INTO scheduled_station (step_pk, ae_title, created_at, updated_at) "
                                          "VALUES (4711, 'CT1', '2025-01-01', '2025-01-01')"))  # fmt: skip

    with pytest.raises(DBAPIError):
        db.run(orphan)


def test_an_empty_database_is_filled_at_start(tmp_path):
    db.open_engine(f"sqlite:///{tmp_path / 'new' / 'broker.sqlite3'}")
    schema.prepare()
    with db.engine().connect() as connection:
        assert schema.current(connection) == schema.head()
