"""The version, for all who tell it: a module of its own, so that they need not import the package."""

__version__ = "0.1.0"
