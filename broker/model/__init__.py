"""All tables, so that metadata is complete wherever one of them is imported."""

from broker.model import images, messages, orders, patients, performed, site, status, upstream, work, worklist

__all__ = ["images", "messages", "orders", "patients", "performed", "site", "status", "upstream", "work", "worklist"]
