"""Models behind an HTTP endpoint: asked with retries, a limit on concurrency, a cache and an account of what it cost."""
