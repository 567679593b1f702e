"""FallbackStorage: two backends as one, the second where the first has nothing."""

from storage_backend.wrappers.fallback.repair import RepairReport
from storage_backend.wrappers.fallback.storage import FallbackStorage

__all__ = ["FallbackStorage", "RepairReport"]
