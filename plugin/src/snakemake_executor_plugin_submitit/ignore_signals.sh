# Starts a program that ignores the signals asking it to save its state until it installs its own handlers: the
# job's own Snakemake, and srun's tasks on every node of a job, which do not inherit this from the shell calling srun.
trap '' TERM USR2
exec "$@"
