"""The topics of the conformance suite, one idea a module."""
