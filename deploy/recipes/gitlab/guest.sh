#!/bin/sh
# Runs GitLab Runner for one job.
#
#   CI_SERVER_URL         the server
#   CI_SERVER_TOKEN       the token of this runner alone (glrt-…)
#   GITLAB_WAIT_SECONDS   longest wait for a job; 600 if unset
#
# The exit status is 0 after one job, whatever its result was, and also if no job came in time: 0 does not say that
# anything was done. A token that the server refuses does not end the program soon: it repeats for minutes.

# Its job can read the environment of the runner: the token is of no use once this vm is gone.
export CI_SERVER_URL CI_SERVER_TOKEN
exec gitlab-runner run-single --executor shell --shell bash --max-builds 1 --wait-timeout "${GITLAB_WAIT_SECONDS:-600}" \
    --builds-dir "$HOME/builds" --cache-dir "$HOME/cache"
