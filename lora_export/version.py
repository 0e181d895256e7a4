"""The version of the package, on the lowest floor, so that every part can name it."""

VERSION = "0.1.0"
