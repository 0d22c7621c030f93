#!/bin/sh
# The training stage on a rented machine: the run's folder goes up, the job runs to its end, the weights come back.
# Needs RETRAIN_BUCKET (s3://…), the aws client and SkyPilot. Started again after a kill, it goes on from the bucket.
# Checked for form only: no cloud has run this file yet.
set -eu
run_dir=$1
place="${RETRAIN_BUCKET:?set it to s3://bucket/prefix}/$(basename "$run_dir")"

aws s3 sync "$run_dir" "$place" --exclude 'logs/*' --exclude 'checkpoints/*'
sky jobs launch --yes --name "$(basename "$run_dir")" --env BUCKET="$place" deploy/sky/train.yaml
aws s3 sync "$place" "$run_dir" --exclude 'logs/*' --exclude 'checkpoints/*' --exclude 'run.yaml'
test -f "$run_dir/checkpoint/config.json"
