"""The command line. What is decided here: words, exit codes and what a terminal shows. Never what a command does."""
