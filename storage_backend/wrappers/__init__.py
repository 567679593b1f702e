"""Wrappers: backends built on another backend. They nest in any order.

Read `base` first: `Wrapper` forwards every public method, and each wrapper overrides what it changes.

* `prefixed`, `readonly`: the simplest two.
* `recoding`, then `blocks`: shared by the wrappers that transform the stored bytes, `compressed` and `encrypted`.
* `sources`: content that can be written again, for `retrying` and `fallback`.
* `retrying`, `fallback`, `cached`: folders; each opens with a guide to its modules.
"""
