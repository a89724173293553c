"""The state of runs, jobs and the cluster, as `fbt status`, `fbt show` and `fbt check-cluster` report it."""
