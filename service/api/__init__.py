"""HTTP routes: operations, reads, jobs, and the OpenAPI document."""
