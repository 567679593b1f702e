"""The wrappers: backends built on another backend, in any order and depth."""
