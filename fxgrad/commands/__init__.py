"""The command line. Nothing else imports this folder."""
