"""The MongoDB and S3 servers of the embedded default, as supervised child processes."""
