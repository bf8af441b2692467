"""The log of a project on object storage: format, reader, writer."""
