"""The merged weights before they were rounded to half precision, and what that rounding does."""
