"""FallbackStorage: two backends as one; the second is used if the first lacks the object.

Read in this order:

    pair          FallbackPair: the order of the sides, the meaning of their errors, the memory of failed writes
    storage       FallbackStorage: every public method
    writing       writes to one side or both, of one object or many
    batches       read_many and delete_many over both sides
    merged_scans  merges two sorted scans
    repair        verified copies between the sides: repair, migrate_to_primary, migrate_to_secondary
"""

from storage_backend.wrappers.fallback.repair import RepairReport
from storage_backend.wrappers.fallback.storage import FallbackStorage

__all__ = ["FallbackStorage", "RepairReport"]
