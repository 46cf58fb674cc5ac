"""Bit for bit: a bundle held against its manifest, against another one, against a build of its own.

`files` reads a bundle and looks whether it is whole; `compare` finds what differs between two;
`look` shows the bytes; `rebuild` makes a bundle again from its manifest; `told` says it all.
"""
