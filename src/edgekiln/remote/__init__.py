"""Stages on other machines, over SSH: `--on quantize=NAME`. docs/remote.md tells of it.

hosts      hosts.yaml and ssh:// addresses
placing    which stage goes where
pack       this checkout as one archive, by its digest
link       one SSH connection: keys of hosts, channels, what a loss is
setup      the checkout and its Python environment on the far side
parts      files that arrive, in part or whole; both sides use it
line       questions to the far side over a channel, asked again after a cut
executor   the executor whose stages run there
wire       the messages themselves; both sides use it
far        the far side: answers questions
work       the far side: does one piece of work, whatever becomes of the connection
blobs      the far side: files by their digests
"""
