"""The verbs of the command line, a module for each subject. Each adds its own to the groups when it is imported."""

from broker.commands import mapping, messages, nodes, orders, site, upstream, worklist

__all__ = ["mapping", "messages", "nodes", "orders", "site", "upstream", "worklist"]
