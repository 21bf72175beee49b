# packer build -var-file=debian-13.pkrvars.hcl, or: build.sh --var-file debian-13.pkrvars.hcl OUTDIR
image          = "https://cloud.debian.org/images/cloud/trixie/latest/debian-13-genericcloud-amd64.qcow2"
image_checksum = "file:https://cloud.debian.org/images/cloud/trixie/latest/SHA512SUMS"
packages       = "git build-essential"

# GitHub stops accepting a runner some time after a newer one was released: take the newest one from
# https://github.com/actions/runner/releases, where its checksum is, too.
runner_version = ""
runner_sha256  = ""
