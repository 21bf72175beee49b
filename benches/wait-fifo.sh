#!/bin/sh
# Returns when the server has heard `runner_finished`.
read -r _ <"$1"
