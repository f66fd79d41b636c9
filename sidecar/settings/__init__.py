"""The settings: `values` and `url` (what a key may be), `model` (the keys), `loading` (where they come from)."""
