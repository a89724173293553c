#!/bin/sh
# Debian packages that `make test-all` needs beside Python: a real Slurm, a browser, LaTeX, the full Fashion-MNIST.
# Where they cannot be installed the tests that need them skip, or fail when CI=true.
set -u
commands="slurmctld:slurmctld slurmd:slurmd sbatch:slurm-client munged:munge slurmdbd:slurmdbd mariadbd:mariadb-server chromium:chromium chromedriver:chromium-driver pdflatex:texlive-latex-base"
missing=""
PATH="$PATH:/usr/sbin:/sbin"
for pair in $commands; do
    command -v "${pair%%:*}" >/dev/null 2>&1 || missing="$missing ${pair##*:}"
done
[ -e /usr/lib/x86_64-linux-gnu/slurm-wlm/auth_none.so ] || [ -e "/usr/lib/$(uname -m)-linux-gnu/slurm-wlm/auth_none.so" ] ||
    missing="$missing slurm-wlm-basic-plugins slurm-wlm-mysql-plugin"
[ -e /usr/share/texlive/texmf-dist/tex/latex/booktabs/booktabs.sty ] || missing="$missing texlive-latex-recommended"
[ -d /usr/share/datasets/fashion-mnist ] || missing="$missing dataset-fashion-mnist"
[ -z "$missing" ] && exit 0
if ! command -v apt-get >/dev/null 2>&1 || [ "$(id -u)" != 0 ]; then
    echo "not installed (needs root and apt-get):$missing; the tests that need them will say so"
    exit 0
fi
echo "installing:$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086
apt-get install -y -qq --no-install-recommends $missing >/dev/null || echo "apt-get could not install all of:$missing"
exit 0
