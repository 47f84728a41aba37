"""Background jobs: a folder for each job, a worker process, and its supervisor."""
