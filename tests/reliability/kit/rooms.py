"""Where the pool of one device is written: the packages and modules whose every call and line is attacked."""

PACKAGES = ("debug", "graphs", "heap", "maintenance", "pool", "steps", "telemetry")
POOL = (*(f"{package}/" for package in PACKAGES), "manager.py")
