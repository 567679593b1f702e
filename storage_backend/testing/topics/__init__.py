"""The topics of the conformance suite, one part of the contract in each module."""
