"""Readers and writers of the exchange formats, each with a validator. Described in docs/formats.md."""
