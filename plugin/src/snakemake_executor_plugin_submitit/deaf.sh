# Started by srun on every node of a job: the program, deaf to the signals that tell it to save its state until it
# installs its own handlers. srun's tasks do not inherit this from the shell that calls srun.
trap '' TERM USR2
exec "$@"
