"""`python -m storage_backend` is the program `storage-backend`."""

from storage_backend.cli import main

main()
