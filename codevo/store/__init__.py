"""People, projects and tokens in MongoDB. The only package that imports motor."""
