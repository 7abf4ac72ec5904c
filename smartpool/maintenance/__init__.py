"""What a pool does between requests: memory given back by age and pressure, and mapped ahead."""
