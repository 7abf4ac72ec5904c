"""One module a framework, each imported only when asked for."""
