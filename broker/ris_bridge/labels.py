"""The worklist on which the orders of a sender stand, where they say nothing else."""

from collections.abc import Sequence
from dataclasses import replace

from sqlmodel import Session, select

from broker.model.site import Sender
from broker.mwl.commands import Command, OrderCommand


def of_sender(session: Session, name: str) -> str:
    """Of the entry of that name; whoever sends over HTTP is called as his token."""
    return session.exec(select(Sender.label).where(Sender.name == name)).first() or ""


def labelled(commands: Sequence[Command], label: str) -> list[Command]:
    """The same; steps that they make and say no other label of get this one."""
    return [replace(one, label=label) if label and isinstance(one, OrderCommand) else one for one in commands]
