"""Backends that are broken in one way each, and the test that must say so."""

from tests.testing.mutants import local, memory_access, memory_content, memory_manners, memory_names

MEMORY = [
    *memory_content.MUTANTS,
    *memory_access.MUTANTS,
    *memory_names.MUTANTS,
    *memory_manners.MUTANTS,
]
LOCAL = local.MUTANTS
