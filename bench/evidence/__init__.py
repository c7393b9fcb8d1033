"""Evidence on the claim that a balanced gradient explains better; each file is one command."""
