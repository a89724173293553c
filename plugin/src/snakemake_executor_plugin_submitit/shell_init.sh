# Read by every non-interactive bash inside a job (BASH_ENV): the shell between Snakemake and the rule's program
# must survive the signals that ask the program to save its state. The program installs its own handlers.
trap '' TERM USR2
# The job has started up: the next one of this node may (turns.py).
if [ -n "${SNAKEMAKE_SUBMITIT_STARTED:-}" ]; then
    : 2>/dev/null >"$SNAKEMAKE_SUBMITIT_STARTED" || true
    unset SNAKEMAKE_SUBMITIT_STARTED
fi
# The program holds its job's GPU slots as well (gpu_slots.py), so that they stay taken if only the job is killed.
if [ -n "${GPU_SLOTS_HELD:-}" ] && command -v flock >/dev/null 2>&1; then
    IFS=: read -r -a gpu_slots_files <<<"$GPU_SLOTS_HELD"
    for gpu_slots_file in "${gpu_slots_files[@]}"; do
        if [ -r "$gpu_slots_file" ] && exec {gpu_slots_lock}<"$gpu_slots_file"; then
            flock --shared --nonblock "$gpu_slots_lock" || true
        fi
    done
fi
if [ -n "${SNAKEMAKE_SUBMITIT_USER_BASH_ENV:-}" ] && [ -r "${SNAKEMAKE_SUBMITIT_USER_BASH_ENV}" ]; then
    . "${SNAKEMAKE_SUBMITIT_USER_BASH_ENV}"
fi
