"""The command line: a file for each subcommand, and what they print with. `kernels` and `reports` add theirs."""
