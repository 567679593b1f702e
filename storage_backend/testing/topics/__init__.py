"""The topics of the conformance suite, one part of the contract in each module.

Read in this order:

* `reading`, `writing`, `deleting`, `copying`: the operations on one object; `ranges`, `streams`, `files`: other ways to read and write.
* `listing`, `batches`: many objects. `identifiers`: valid and invalid names. `errors`, `capabilities`, `closing`: the rest of the contract.
* `replacing`, `processes`: races of threads and processes.
"""
