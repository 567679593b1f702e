"""LocalStorage: the files beneath one directory.

Read the modules in this order:

`storage`: the verbs. Each opens its path through `containment` and turns OSErrors into ours (`errors`).
`containment`: ContainedRoot opens paths beneath the base directory, and nothing outside it, wherever symlinks lead.
`base_directory`: checks and creates the base directory. `local_file`: one file as an object, and a reader of it.
`small_write`: `write` of up to 1 MiB, with the fewest system calls. `staged_object`: every other write.
`renaming`, `symlinks`: moves, and directories in the way of a write or a move.
`leftovers`: removes temporary files of killed processes. `syncing`: fsync and syncfs.
`walk`: walks directories by descriptors, in identifier order. `scanner`: makes `list` and `scan` of that.
"""

from storage_backend.backends.local.storage import LocalStorage

__all__ = ["LocalStorage"]
