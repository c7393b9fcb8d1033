"""Commands that write the tables and pictures of bench/measured/, and docs/rules.md; each file is one command."""
