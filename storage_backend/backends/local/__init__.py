"""LocalStorage: the files beneath one directory.

Read the modules in this order:

`storage`: the public methods. Each opens its path through `containment` and translates OSErrors (`errors`).
`containment`: ContainedRoot opens paths beneath the base directory, and nothing outside it, whatever symlinks exist.
`base_directory`: checks and creates the base directory. `local_file`: one file as an object, and a reader of it.
`small_write`: `write` of up to 1 MiB, with the fewest system calls. `staged_object`: every other write. Both publish a new file by
link or rename: `small_write._replace` and `storage_backend.files.StagedFile.publish`.
`renaming`, `symlinks`: moves, and empty directories in the way of a write or a move.
`leftovers`: removes temporary files of killed processes. `syncing`: fsync and syncfs.
`walk`: walks a directory tree by descriptors, in identifier order. `scanner`: `list`, `scan` and `scan_level` on top of it.
`hooks`: what transfers and progress displays use.
"""

from storage_backend.backends.local.storage import LocalStorage

__all__ = ["LocalStorage"]
