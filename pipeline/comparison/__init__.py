"""Methods beside each other: statistics, the published tables, the content of comparison.json, and it for people."""
