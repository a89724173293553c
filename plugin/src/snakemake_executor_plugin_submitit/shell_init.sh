# Read by every non-interactive bash inside a job (BASH_ENV): the shell between Snakemake and the rule's program
# must survive the signals that ask the program to save its state. The program installs its own handlers.
trap '' TERM USR2
if [ -n "${SNAKEMAKE_SUBMITIT_USER_BASH_ENV:-}" ] && [ -r "${SNAKEMAKE_SUBMITIT_USER_BASH_ENV}" ]; then
    . "${SNAKEMAKE_SUBMITIT_USER_BASH_ENV}"
fi
