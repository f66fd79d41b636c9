"""Evidence that outlives the process: tables, migrations, and the writer that degrades to memory and heals."""

from sidecar.store.evidence_store import EvidenceStore, History
from sidecar.store.queries import Extent

__all__ = ["EvidenceStore", "Extent", "History"]
