"""Names of adapters and bases: which tensor a module's name means."""
